"""Every agent, dueling and noisy on request, with NaP; Munchausen's reward as an option."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nap_rl.agents import whole_update
from nap_rl.compilation import compiler
from nap_rl.conf import build, check
from nap_rl.conf.environments import Observations
from nap_rl.losses import Munchausen
from nap_rl.nap import scale_invariance
from tests.conf.checked import SMALL, checked

AGENTS = sorted(path.stem for path in (Path(check.__file__).parent / "agent").glob("*.yaml"))


SMALL_TORSO = ["agent.torso=data_efficient", "agent.width=1", "agent.max_pool=null", "agent.spectral_norm=false"]

# In the quick suite; the slow suite has every agent.
PLAIN = ("dqn", "iqn")  # also without dueling and noise
COMPILED = (("rainbow", "bf16"),)  # noisy and dueling over atoms; the others are slow tests


@pytest.mark.parametrize(
    ("agent", "dueling"),
    [
        pytest.param(agent, dueling, marks=[] if dueling or agent in PLAIN else pytest.mark.slow)
        for agent in AGENTS
        for dueling in (True, False)
    ],
)
def test_every_agent_is_dueling_and_noisy_on_request_and_with_nap_scale_invariant_and_projected(
    agent: str, dueling: bool
) -> None:
    noisy = "0.1" if dueling else "null"
    asked = ["agent.nap=true", f"agent.dueling={dueling}", f"agent.noisy_sigma0={noisy}"]
    config = checked(f"agent={agent}", *SMALL_TORSO, "agent.hidden=8", *asked, *SMALL)
    built, projector = build.build_agent(config, 3, torch.device("cpu"))
    assert projector is not None
    streams = built.network.streams
    assert (streams.value is not None) == dueling and bool(streams.noisy_layers()) == dueling
    changes = scale_invariance(built.network, torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8))
    assert all(change < 1e-3 for name, change in changes.items() if not name.endswith("output")), changes
    rng = np.random.default_rng(0)
    for k in range(25):
        frames = rng.integers(256, size=(config.env.num_envs, 84, 84), dtype=np.uint8)
        n = len(frames)
        built.replay.add(frames, rng.integers(3, size=n), rng.normal(size=n), np.ones(n), np.full(n, k == 0))
    before = {name: p.detach().clone() for name, p in built.network.named_parameters()}
    for _ in range(2):
        assert torch.isfinite(built.update().loss)
    assert float(projector.max_relative_drift()) < 1e-5
    for name, p in built.network.named_parameters():
        assert not torch.equal(p, before[name]), name


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["agent.double=true"], "agent.double=true: its policy is the target network's"),
        (["agent.munchausen.temperature=0"], "temperature=0.0, expected a number above 0"),
        (["agent.munchausen.clip=1"], r"clip=1.0, expected a number in \[-inf, 0\]"),
        (["agent/head=implicit_quantile", "agent.head.samples=0"], "agent.head.samples=0, expected 1 or more"),
        (
            ["agent/head=implicit_quantile", "agent.head.priority=td"],
            "agent.head.priority=td is none of loss, td_error",
        ),
    ],
)
def test_a_munchausen_agent_that_is_none_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checked("agent=munchausen", *SMALL, *overrides)


@pytest.mark.parametrize("setting", ["width=2", "max_pool=6", "spectral_norm=true"])
def test_what_is_for_impalas_torso_is_refused_with_another(setting: str) -> None:
    with pytest.raises(ValueError, match=r"is for agent.torso=impala, and agent.torso=nature: use agent\.") as refusal:
        checked("agent=dqn", *SMALL, f"agent.{setting}")
    assert setting.partition("=")[0] in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", ["leaky_relu", "crelu"])
def test_methods_that_change_relus_are_refused_where_there_are_none(method: str) -> None:
    sentence = f"plasticity={method} changes ReLUs, and agent.activation=gelu has none: use relu"
    with pytest.raises(ValueError, match=sentence):
        checked("agent=dqn", *SMALL, "agent.activation=gelu", f"plasticity={method}")


def test_munchausen_is_an_option_of_every_agent_but_double_and_categorical_ones() -> None:
    config = checked("agent=iqn", "agent.munchausen.alpha=0.9", "agent.torso=data_efficient", *SMALL)
    agent, _ = build.build_agent(config, 4, torch.device("cpu"))
    assert agent.munchausen == Munchausen(0.9, 0.03, -1.0) and not agent.double
    assert build.build_agent(checked("agent=dqn", *SMALL), 4, torch.device("cpu"))[0].munchausen is None


@pytest.mark.skipif(shutil.which(compiler()) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("agent", "precision"),
    [
        pytest.param(agent, precision, marks=[] if (agent, precision) in COMPILED else pytest.mark.slow)
        for agent in AGENTS
        for precision in ("fp32", "bf16")
    ],
)
def test_every_agent_learns_and_acts_compiled_as_whole_graphs(
    agent: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that breaks in pieces is slower and says nothing: DQN's did, and was no faster than uncompiled."""
    compile_whole = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_whole(function, **options))
    asked = [f"precision={precision}", "agent.nap=true", *SMALL_TORSO, "compile=on"]
    built, _ = build.build_agent(checked(f"agent={agent}", *SMALL, *asked), 4, torch.device("cpu"))
    torch._dynamo.reset()
    rng = np.random.default_rng(0)
    for k in range(25):
        frames = rng.integers(256, size=(8, 84, 84), dtype=np.uint8)
        built.replay.add(frames, rng.integers(4, size=8), rng.normal(size=8), np.ones(8), np.full(8, k == 0))
    with torch._dynamo.config.patch(suppress_errors=False):
        built.act(np.repeat(frames[:, None], 4, axis=1), epsilon=0.1)
        assert torch.isfinite(built.update().loss)


def test_scope_unit_keeps_the_norm_of_every_unit_and_its_updates_may_be_one_function() -> None:
    config = checked(
        *("env=catch", "agent=dqn_small", "agent.nap=true", "nap.scope=unit", "agent.hidden=16"),
        *("replay.capacity=1000", "compile=off"),
    )
    env = build.build_env(config)
    built, projector = build.build_agent(config, env.num_actions, torch.device("cpu"), Observations.of(env))
    assert projector is not None and whole_update.refusal(built) is None
    hidden = {name: p for name, p in built.network.named_parameters() if p.ndim == 2 and "output" not in name}
    before = {name: p.detach().double().norm(dim=1) for name, p in hidden.items()}
    rng, n = np.random.default_rng(0), config.env.num_envs
    for k in range(20):
        frames = rng.random((n, *built.replay.frames.shape[1:])).astype(np.float32)
        built.replay.add(frames, rng.integers(3, size=n), rng.normal(size=n), np.ones(n), np.full(n, k == 0))
    for _ in range(20):
        built.update()
    assert len(before) == 3
    for name, p in hidden.items():
        torch.testing.assert_close(p.detach().double().norm(dim=1), before[name], rtol=1e-6, atol=0.0)
