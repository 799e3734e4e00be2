"""Users' modules and classes by their dotted names."""

from __future__ import annotations

import importlib
from typing import Any


def import_module(name: str) -> Any:
    """A module by its dotted name. Raises ValueError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the module '{name}' cannot be imported ({error}): is its folder in PYTHONPATH?") from None


def import_object(path: str) -> Any:
    """What a dotted path such as `my_package.my_module.MyClass` names. Raises ValueError where there is nothing."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"'{path}' is no dotted path such as my_package.{path}")
    found = import_module(module)
    if not hasattr(found, name):
        raise ValueError(f"the module '{module}' has no '{name}'")
    return getattr(found, name)
