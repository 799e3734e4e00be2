"""The paper's nonstationary supervised studies: random labels, dead units, schedule replay."""
