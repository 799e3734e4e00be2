"""The paper's supervised studies on labels that change: random labels, dead units, schedule replay."""
