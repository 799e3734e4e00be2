"""Stable-Baselines3, both ways: its zips as our agents, our Rainbow as its algorithm, NaP for its own algorithms."""

from nap_rl.nn import NetworkSpec
from nap_rl.sb3.algorithm import Rainbow
from nap_rl.sb3.archive import ZipError
from nap_rl.sb3.callback import NaPCallback, nap_policy
from nap_rl.sb3.export import export
from nap_rl.sb3.load import LoadedPolicy, load

__all__ = [
    "LoadedPolicy",
    "NaPCallback",
    "NetworkSpec",
    "Rainbow",
    "ZipError",
    "export",
    "load",
    "nap_policy",
]
