"""Settings that later versions added, with the values that earlier runs had without naming them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADDED: dict[str, Any] = {
    "seeds": None,
    "precision": "fp32",
    "compile": "off",
    "threads": "auto",
    "optimizer": {"name": "adam", "beta1": 0.9, "beta2": 0.999},
    "plasticity": {"name": "none"},
    "eval": {"every": None, "episodes": 1, "num_envs": 1, "epsilon": 0.0, "noisy": False},
    "checkpoint": {"every": None, "keep": 2, "max_failures": 3, "replay": False},
}
ADDED_TO_SECTIONS: dict[str, dict[str, Any]] = {
    "agent": {
        "munchausen": {"alpha": None, "temperature": 0.03, "clip": -1.0},
        "init_from": None,
        "net_arch": [],
        "width": 1,
        "max_pool": None,
        "spectral_norm": False,
        "activation": "relu",
    },
    "eval": {"tasks": "current"},
    "nap": {"scope": "tensor"},
    "replay": {"device": "auto"},
    "logger": {"diagnostics_every_updates": None, "wandb": False, "mlflow": False},
}
ADDED_TO_EPSILON: dict[str, Any] = {"until_frames": None}
ADDED_TO_IMPLICIT_QUANTILE: dict[str, Any] = {"priority": "loss"}
ADDED_TO_ENV: dict[str, dict[str, Any]] = {
    "protocol": {"resize": "area"},
    "on_switch": {"exploration": "continue", "network": "keep"},
}


def complete(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings of a run of any version, with all settings of this one."""
    settings = {**ADDED, **plain}
    for section, added in ADDED_TO_SECTIONS.items():
        settings[section] = {**added, **settings[section]}
    agent = settings["agent"]
    agent["epsilon"] = {**ADDED_TO_EPSILON, **agent["epsilon"]}
    if "cosines" in agent["head"]:
        agent["head"] = {**ADDED_TO_IMPLICIT_QUANTILE, **agent["head"]}
    env = settings["env"] = dict(settings["env"])
    for section, added in ADDED_TO_ENV.items():
        if section in env:
            env[section] = {**added, **env[section]}
    return settings
