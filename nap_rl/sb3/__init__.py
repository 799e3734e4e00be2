"""Stable-Baselines3, both ways: its zips as our agents, our Rainbow as its algorithm, NaP and priorities for its own.

A name is imported when it is first asked for: reading a zip does not wait for SB3's own imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nap_rl.nn import NetworkSpec
    from nap_rl.sb3.algorithm import Rainbow
    from nap_rl.sb3.archive import ZipError
    from nap_rl.sb3.callback import NaPCallback, nap_policy
    from nap_rl.sb3.exporting import export
    from nap_rl.sb3.loading import LoadedPolicy, load
    from nap_rl.sb3.prioritized import PrioritizedDQN, PrioritizedReplayBuffer

__all__ = [
    "LoadedPolicy",
    "NaPCallback",
    "NetworkSpec",
    "PrioritizedDQN",
    "PrioritizedReplayBuffer",
    "Rainbow",
    "ZipError",
    "export",
    "load",
    "nap_policy",
]
MODULES = {
    "LoadedPolicy": "nap_rl.sb3.loading",
    "NaPCallback": "nap_rl.sb3.callback",
    "NetworkSpec": "nap_rl.nn",
    "PrioritizedDQN": "nap_rl.sb3.prioritized",
    "PrioritizedReplayBuffer": "nap_rl.sb3.prioritized",
    "Rainbow": "nap_rl.sb3.algorithm",
    "ZipError": "nap_rl.sb3.archive",
    "export": "nap_rl.sb3.exporting",
    "load": "nap_rl.sb3.loading",
    "nap_policy": "nap_rl.sb3.callback",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
