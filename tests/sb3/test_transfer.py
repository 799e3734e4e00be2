"""`agent.init_from=model.zip` and `evaluate.py model.zip`: a run that begins where SB3 left off."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from stable_baselines3 import DQN

import evaluate
from nap_rl import cli
from nap_rl.agents import ValueAgent
from nap_rl.conf import build, environments, evaluation, schema
from nap_rl.conf.check import to_config
from nap_rl.nap import Projector
from nap_rl.sb3 import Rainbow, export, load
from tests.sb3.envs import Pictures

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["replay.capacity=2000", "agent.min_replay_steps=100", "env.game=pong", "device=cpu"]
ACTIONS = 6


def built(*overrides: str) -> tuple[ValueAgent, Projector | None, list[str]]:
    """The agent that train.py would train, and the warnings on the way."""
    schema.register()
    cli.register_resolvers()
    node: DictConfig = cli.compose("config", [*SMALL, *overrides])
    config = to_config(node)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent, projector = build.build_agent(config, ACTIONS, torch.device("cpu"))
    return agent, projector, [str(warning.message) for warning in caught if "init_from" in str(warning.message)]


@pytest.mark.parametrize(("name", "settings"), [("dqn", []), ("qr_dqn", ["agent.head.quantiles=50"])])
def test_the_same_agent_is_taken_over_exactly(name: str, settings: list[str], request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(f"{name}_zip")
    agent, _, said = built(f"agent={name}", f"agent.init_from={path}", *settings)
    expected = load(path).agent
    assert said == []
    for net in ("network", "target"):
        theirs = getattr(expected, net).state_dict()
        assert all(torch.equal(tensor, theirs[n]) for n, tensor in getattr(agent, net).state_dict().items())
    moments = agent.optimizer.state_dict()["state"]
    for index, state in expected.optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[index][kind], tensor) for kind, tensor in state.items())
    assert agent.optimizer.param_groups[0]["lr"] < 1e-4 < 1e-3 == expected.optimizer.param_groups[0]["lr"]  # the run's


@pytest.mark.parametrize("name", ["rainbow", "qr_dqn"])
def test_another_head_keeps_the_torso_and_says_so(name: str, dqn_zip: Path) -> None:
    agent, _, said = built(f"agent={name}", f"agent.init_from={dqn_zip}")
    expected = load(dqn_zip).agent.network.torso.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in agent.network.torso.state_dict().items())
    (warning,) = said
    assert "only the torso of the DQN zip is kept" in warning and "FRESH are" in warning and "\n" not in warning
    assert "streams.advantage.output" in warning and agent.optimizer.state_dict()["state"] == {}


def test_project_only_keeps_the_function_and_the_norms_that_were_loaded(dqn_zip: Path) -> None:
    agent, projector, said = built("agent=dqn", "agent.nap=true", "nap=project_only", f"agent.init_from={dqn_zip}")
    expected = load(dqn_zip).agent.network
    assert said == [] and projector is not None and agent.optimizer.state_dict()["state"]
    assert all(torch.equal(tensor, expected.state_dict()[n]) for n, tensor in agent.network.state_dict().items())
    for name in ("torso.0", "torso.4", "streams.advantage.hidden"):
        norm = float(expected.get_submodule(name).weight.detach().double().norm())  # type: ignore[union-attr,operator]
        assert float(projector.groups[name]) == pytest.approx(norm, rel=1e-6)


def test_full_nap_tells_how_many_greedy_actions_stay(dqn_zip: Path) -> None:
    agent, projector, said = built("agent=dqn", "agent.nap=true", f"agent.init_from={dqn_zip}")
    (warning,) = said
    assert "CHANGES what it computes: on 1,000 real observations" in warning and "%" in warning
    expected = load(dqn_zip).agent.network
    weights = dict(expected.named_parameters())
    for name, parameter in agent.network.named_parameters():
        assert name not in weights or torch.equal(parameter, weights[name]), name
    assert projector is not None and float(projector.groups["torso.0"]) == pytest.approx(
        float(weights["torso.0.weight"].detach().double().norm()), rel=1e-6
    )


def test_another_torso_is_refused(dqn_zip: Path) -> None:
    with pytest.raises(ValueError, match=r"agent.init_from=.*: its torso is another one .* use agent.torso=nature"):
        built("agent=dqn", "agent.torso=impala", f"agent.init_from={dqn_zip}")


REFUSED_UNREAD = [
    ("agent=dqn agent.torso=impala", "cnn", "its torso is another one (agent.torso: nature there and impala here): "),
    ("agent=dqn", "hidden", "its torso is another one (agent.net_arch: [8] there and [] here): use agent.net_arch=[8]"),
    ("agent=dqn", "colours", "it acts on images of 3 channels, and pong shows observations of [4, 84, 84]"),
    ("agent=dqn", "vectors", "it acts on 4 numbers, and pong shows observations of [4, 84, 84]"),
    ("env=gym agent=dqn_small", "cnn", "it acts on images of 4 channels, and CartPole-v1 shows observations of [1, 4]"),
    ("env=gym agent=dqn_small", "vectors", "its torso is another one (agent.net_arch: [6] there and [64,64] here): "),
    (
        "env=gym agent=dqn_small agent.net_arch=[6]",
        "nap",
        "its torso has NaP's norms: use agent.nap=true nap.norm=layer",
    ),
]


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh models: of SB3's CnnPolicy and MlpPolicy, and a Rainbow with NaP."""
    folder = tmp_path_factory.mktemp("zips")
    for name, channels, net_arch in (("cnn", 4, []), ("hidden", 4, [6]), ("colours", 3, [])):
        kwargs = {"net_arch": net_arch, "features_extractor_kwargs": {"features_dim": 8}}
        env = Pictures((84, 84, channels))
        DQN("CnnPolicy", env, buffer_size=9, policy_kwargs=kwargs, device="cpu").save(folder / name)
    DQN("MlpPolicy", "CartPole-v1", buffer_size=9, policy_kwargs={"net_arch": [6, 7]}, device="cpu").save(
        folder / "vectors"
    )
    kwargs = {"net_arch": [6], "hidden": 7, "outputs": 5}
    Rainbow("MlpPolicy", "CartPole-v1", buffer_size=99, nap=True, policy_kwargs=kwargs, device="cpu").save(
        folder / "nap"
    )
    return folder


@pytest.mark.parametrize(("settings", "name", "sentence"), REFUSED_UNREAD)
def test_a_zip_that_does_not_fit_is_refused_before_its_tensors_are_read(
    settings: str, name: str, sentence: str, zips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nap_rl.sb3.model.read_model", None)
    typed = [*(each for each in SMALL if not ("env=" in settings and "env." in each)), *settings.split()]
    schema.register()
    cli.register_resolvers()
    with pytest.raises(ValueError) as caught:
        to_config(cli.compose("config", [*typed, f"agent.init_from={zips / name}.zip"]))
    assert str(caught.value).startswith(f"agent.init_from={zips / name}.zip: {sentence}")


@pytest.mark.parametrize(
    ("settings", "name", "actions"),
    [
        ("agent=dqn agent.net_arch=[8] agent.hidden=6", "hidden", 3),
        ("env=gym agent=dqn_small agent.net_arch=[6] agent.hidden=7", "vectors", 2),
        (
            "env=gym agent=rainbow_small agent.net_arch=[6] agent.hidden=7 agent/head=quantile agent.head.quantiles=5 "
            "agent.noisy_sigma0=0.5 agent.nap=true",
            "nap",
            2,
        ),
    ],
)
def test_every_network_of_a_zip_is_taken_over_exactly_by_the_settings_that_describe_it(
    settings: str, name: str, actions: int, zips: Path
) -> None:
    schema.register()
    cli.register_resolvers()
    typed = [*(each for each in SMALL if not ("env=" in settings and "env." in each)), *settings.split()]
    config = to_config(cli.compose("config", [*typed, "compile=off", f"agent.init_from={zips / name}.zip"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent, _ = build.build_agent(config, actions, torch.device("cpu"), environments.shown(config.env, 0)[0])
    expected = load(zips / f"{name}.zip", capacity=100).agent.network.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in agent.network.state_dict().items())


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def _evaluation_types() -> None:
    schema.register()
    evaluation.register()
    cli.register_resolvers()


@pytest.mark.usefixtures("_evaluation_types")
def test_evaluate_scores_a_zip_and_writes_below_runs_not_beside_it(
    dqn_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = sorted(dqn_zip.parent.iterdir())
    settings = ["episodes=2", "num_envs=2", "env.protocol.max_episode_frames=400"]
    assert evaluate.run([str(dqn_zip), "env.game=pong", *settings]) == 0
    (out,) = (tmp_path / "runs" / "evaluations").iterdir()
    assert "pong" in capsys.readouterr().out and (out / "evaluation.json").is_file()
    assert sorted(dqn_zip.parent.iterdir()) == beside


@pytest.mark.usefixtures("_evaluation_types")
@pytest.mark.parametrize(
    ("game", "sentence"),
    [(None, "does not say its game: add env.game="), ("breakout", "acts with 6 actions, but env.game=breakout has 4")],
)
def test_evaluate_needs_the_right_game(game: str | None, sentence: str, dqn_zip: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate.run([str(dqn_zip), *([] if game is None else [f"env.game={game}"]), "episodes=1"])


def test_train_refuses_a_bad_zip_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_text("no zip")
    with pytest.raises(ValueError, match="model.zip is not a sound zip"):
        built("agent=dqn", f"agent.init_from={tmp_path / 'model.zip'}")


@pytest.mark.slow
def test_train_runs_on_from_a_zip(dqn_zip: Path, tmp_path: Path) -> None:
    short = ["frames=1000", "replay.capacity=1000", "agent.min_replay_steps=200", "logger.tensorboard=false"]
    folder = tmp_path / "run"
    done = run("train.py", "agent=dqn", f"agent.init_from={dqn_zip}", *short, "device=cpu", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert export(folder, tmp_path / "again.zip") == "DQN"
    updates = json.loads((folder / "summary.json").read_text())["updates"]
    expected, again = load(dqn_zip), load(tmp_path / "again.zip")
    steps = [policy.agent.optimizer.state_dict()["state"][0]["step"] for policy in (expected, again)]
    assert updates > 0 and steps[1] == steps[0] + updates  # Adam went on counting
