"""The effective rate that films show, read from a run's log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nap_rl.report.layers import effective_rate


def test_the_effective_rate_is_the_geometric_mean_over_layers(tmp_path: Path) -> None:
    rows = ["updates,frames,nap/effective_lr/a,nap/effective_lr/b", "1,4,0.01,0.0001", "2,8,,", "3,12,0.02,0.02"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    found = effective_rate(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found[0], [4, 12])
    np.testing.assert_allclose(found[1], [0.001, 0.02])


@pytest.mark.parametrize("text", [None, "updates,frames,nap/effective_lr/a\n", "updates,frames\n1,4\n"])
def test_a_run_that_logged_none_has_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert effective_rate(tmp_path) is None
