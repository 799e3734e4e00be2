"""Normalize-and-Project (Lyle et al. 2024, arXiv 2407.01800) for any torch module and optimiser."""

from nap_rl.nap.effective_lr import LayerMonitor
from nap_rl.nap.groups import weight_groups
from nap_rl.nap.invariance import scale_invariance
from nap_rl.nap.normalize import normalize
from nap_rl.nap.project import Projector
from nap_rl.nap.recipe import normalize_and_project

__all__ = [
    "LayerMonitor",
    "Projector",
    "normalize",
    "normalize_and_project",
    "scale_invariance",
    "weight_groups",
]
