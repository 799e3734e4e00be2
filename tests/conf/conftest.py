"""Registers the types and resolvers of train.py's configuration with Hydra."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nap_rl import cli
from nap_rl.conf import schema


@pytest.fixture(scope="module", autouse=True)
def _types() -> Iterator[None]:
    schema.register()
    cli.register_resolvers()
    yield
