"""Everything about the replay holds for plain torch and for native code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nap_rl.native import library
from nap_rl.replay import Replay
from nap_rl.replay.priorities import Priorities


@pytest.fixture(scope="module", autouse=True, params=["torch", "native"])
def native_code(request: pytest.FixtureRequest) -> Iterator[bool]:
    """The default of every replay in these tests."""
    native = request.param == "native"
    if native and library() is None:
        pytest.skip("needs a C++ compiler")
    defaults = [each.__init__.__kwdefaults__ for each in (Replay, Priorities)]
    for each in defaults:
        each["native_code"] = native
    yield native
    for each in defaults:
        each["native_code"] = False
