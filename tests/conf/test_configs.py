"""Every YAML composes and checks; bad input is one sentence, whatever it is."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, read_write

from nap_rl import cli
from nap_rl.conf import build, check, memory, networks, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config
from nap_rl.conf.seeds import seeds
from tests.conf.checked import SMALL, checked

CONF = Path(check.__file__).parent


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = (
    *("agent", "agent/head", "env", "env/protocol", "nap", "plasticity"),
    *("optimizer", "schedule", "replay", "logger", "experiment"),
)
CHOICES = [f"{group}={option}" for group in GROUPS for option in options(group)]


def with_what_it_needs(choice: str) -> list[str]:
    nap = ["agent.nap=true"]
    small_env = choice.startswith("env=") and "atari" not in choice
    if "minatar" in choice and choice.startswith(("env=", "experiment=")):
        pytest.importorskip("minatar")
    needs = {
        "nap": nap,
        "env": ["agent=dqn_small"] if small_env else [],
        "plasticity": [*nap, *(["env=sequential_atari"] if choice.endswith("fire") else [])],
        "experiment": ["env=sequential_atari"] if choice.endswith("quick") else [],
    }
    if choice in ("schedule=piecewise", "schedule=recorded"):
        pytest.skip("needs a file: see test_learning_rates.py")
    small = ["replay.capacity=200000"] if choice.startswith("experiment") else SMALL
    return [choice, *needs.get(choice.split("=")[0], []), *small]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_of_every_group_composes_checks_and_comes_back_from_json(choice: str) -> None:
    config = checked(*with_what_it_needs(choice))
    plain = schema.to_dict(config)
    again = schema.from_dict(json.loads(json.dumps(plain)))
    assert again == config and type(again.env) is type(config.env)
    assert type(again.agent.head) is type(config.agent.head) and type(again.schedule) is type(config.schedule)
    assert type(again.plasticity) is type(config.plasticity) and type(again.optimizer) is type(config.optimizer)


def test_the_settings_of_a_run_from_before_later_ones_were_added_still_come_back() -> None:
    plain = schema.to_dict(checked(*SMALL))
    for section, later in (
        (plain, ("plasticity", "optimizer", "eval", "checkpoint", "precision", "compile")),
        (plain["agent"], ("munchausen", "init_from")),
        (plain["replay"], ("device",)),
    ):
        for name in later:
            del section[name]
    config = schema.from_dict(plain)
    assert config.eval.every is None and config.agent.munchausen.alpha is None and config.plasticity.name == "none"
    assert schema.to_dict(config)["optimizer"] == {"name": "adam", "beta1": 0.9, "beta2": 0.999}
    assert config.precision is schema.Precision.fp32 and config.compile is schema.Compile.off


def test_the_plain_command_is_a_200m_frame_rainbow_on_one_game(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    config = checked()
    assert config.frames == 200_000_000 and config.agent.name == "rainbow" and config.agent.nap is False
    assert config.replay.capacity == 1_000_000


def test_the_frames_of_a_sequence_are_those_of_all_its_visits() -> None:
    assert checked("env=sequential_atari", "env.frames_per_game=1000", "env.cycles=3", *SMALL).frames == 30_000


@pytest.mark.parametrize(
    "overrides",
    [
        ["agent=dqn"],
        ["agent.dueling=false", "agent/head=quantile", "agent.torso=impala"],
        *[["agent.nap=true", f"nap={nap}"] for nap in options("nap")],
        *[["agent.nap=true", f"nap.norm={norm}"] for norm in ("layer", "rms", "group", "batch")],
        *[["agent.nap=true", f"nap.affine={affine}"] for affine in ("project", "regularize", "free", "omit")],
        ["agent.nap=true", "nap.output=project"],
        pytest.param(["agent.nap=true", "nap.output=project", "agent.torso=impala"], marks=pytest.mark.slow),
        ["agent.nap=true", "agent.noisy_sigma0=null", "nap.axes=channels"],
        *[["agent.nap=true", f"plasticity={method}"] for method in options("plasticity") if method != "fire"],
        ["agent.nap=true", "plasticity=fire", "env=sequential_atari"],
        ["agent.torso=impala", "plasticity=redo"],
        ["agent.nap=true", "nap=project_only", "plasticity=crelu"],
    ],
    ids=" ".join,
)
def test_what_checks_can_be_built_and_acts(overrides: list[str]) -> None:
    config = checked("agent.torso=data_efficient", "agent.hidden=8", *SMALL, *overrides)
    agent, projector = build.build_agent(config, 4, torch.device("cpu"))
    assert (projector is not None) == (config.agent.nap and config.nap.project)
    stacks = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    assert agent.network.q_values(stacks).shape == (2, 4)
    assert set(agent.act(stacks.numpy()).tolist()) <= {0, 1, 2, 3}


def test_configured_values_reach_what_they_are_named_after() -> None:
    config = checked(
        "env=sequential_atari",
        "experiment=quick",
        "schedule=linear",
        "schedule.over_frames=777",
        "env.on_switch.replay=reset",
        "agent.n_steps=5",
        "agent.discount=0.5",
        "agent.reward_clip=null",
        "agent.priority_exponent=0.7",
        "agent.uniform_probability=0.2",
        "agent.max_grad_norm=null",
        "agent.torso=data_efficient",
    )
    agent, _ = build.build_agent(config, 18, torch.device("cpu"))
    replay, settings = agent.replay, build.build_trainer_config(config)
    assert (replay.n_steps, replay.discount, replay.reward_clip) == (5, 0.5, None)
    assert (replay.priorities.exponent, replay.priorities.uniform_probability) == (0.7, 0.2)
    assert agent.max_grad_norm is None and agent.target_every_updates == 200 and agent.double
    assert agent.optimizer.defaults["eps"] == 1.5625e-4 and agent.optimizer.defaults["lr"] == 6.25e-5
    assert settings.schedule_frames == 777 and settings.learning_rate(1.0) == pytest.approx(1e-6)
    assert settings.on_switch.reset_replay and not settings.on_switch.restart_schedule
    assert not settings.on_switch.reset_target and not settings.on_switch.reset_optimizer
    assert (settings.frames, settings.min_replay_steps, settings.log_every_updates) == (32_000, 800, 50)
    assert (settings.importance(0.0), settings.importance(1.0)) == (0.4, 1.0)
    config = checked("env=sequential_atari", "experiment=quick", "schedule=linear", "env.on_switch.schedule=restart")
    assert build.build_trainer_config(config).on_switch.restart_schedule


def test_a_span_for_a_schedule_that_restarts_at_every_switch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.over_frames is given"):
        checked("env=sequential_atari", "schedule=linear", "schedule.over_frames=777", "env.on_switch.schedule=restart")


def test_one_seed_gives_one_network_and_does_not_touch_torchs_own() -> None:
    small = ["agent.torso=data_efficient", "agent.hidden=4", *SMALL]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (networks.build_network(checked(*small, f"seed={seed}"), 4) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs if a.std() > 1e-6)
    assert len(set(seeds(0)) | set(seeds(1))) == 2 * len(seeds(0))


BAD = [
    ("env.game=brakeout", "unknown game 'brakeout': did you mean 'breakout'?"),
    ("env.game=joust", "game 'joust' cannot be played: ale-py has its ROM, but not its rules"),
    ("env.game=PongNoFrameskip-v4", "unknown game 'PongNoFrameskip-v4': did you mean 'pong'?"),
    ("env.game=ALE/Pong-v5", "unknown game 'ALE/Pong-v5': did you mean 'pong'?"),
    ("env.gme=pong", "there is no key 'env.gme': did you mean 'env.game'?"),
    ("+env.gme=pong", "there is no key 'env.gme': did you mean 'env.game'?"),
    ("agent.learning_rat=1", "there is no key 'agent.learning_rat': did you mean 'agent.learning_rate'?"),
    ("+agent.learning_rat=1", "there is no key 'agent.learning_rat': did you mean 'agent.learning_rate'?"),
    ("agent.lr=1", "there is no key 'agent.lr': did you mean 'agent.learning_rate'?"),
    ("lr=1", "there is no key 'lr': did you mean 'agent.learning_rate'?"),
    ("gamma=1", "there is no key 'gamma': did you mean 'agent.discount'?"),
    ("batch_size=1", "there is no key 'batch_size': did you mean 'agent.batch_size'?"),
    ("env=pong", "did you mean env=atari env.game=pong?"),
    ("env.game=Pong", "did you mean 'pong'?"),
    ("env.frames_per_game=8", "there is no key 'env.frames_per_game' here: env=sequential_atari has it"),
    ("agent.head.quantiles=8", "agent/head=quantile, agent/head=quantile_small have it"),
    ("nap=true", "did you mean agent.nap=true?"),
    ("env=3", "env=3: env is a group of settings with the options atari, catch"),
    ("name=模型", """put quotes around the value, "name='模型'\""""),
    ("name=a(b)=c", """put quotes around the value, "name='a(b)=c'\""""),
    ("seed=[", "seed=[ cannot be read as it is"),
    ("seed", "'seed' is no setting: write key=value"),
    ("x y=1", "'x y=1' is no setting: write key=value"),
    ("seeed=1", "there is no key 'seeed': did you mean 'seed'?"),
    ("+seeed=1", "there is no key 'seeed': did you mean 'seed'?"),
    ("agent.nap=ture", "agent.nap=ture is not true or false"),
    ("seed=3.5", "seed=3.5 is not a whole number"),
    ("seed=-1", "seed=-1, expected 0 or more"),
    ("~seed", "seed has no value"),
    ("~name", "name has no value"),
    ("seed=???", "seed has no value"),
    ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
    ("agent.learning_rate=???", "Missing mandatory value: agent.learning_rate"),
    ("seed=null", "seed=null, but it needs a value"),
    ("device=cuda", "device=cuda, but torch sees no CUDA GPU here"),
    ("device=gpu", "device=gpu is none of"),
    ("replay.device=cuda", "replay.device=cuda, but the learner is on the CPU"),
    ("nap=norm_only", "nap=norm_only was asked for, but agent.nap=false: add agent.nap=true"),
    ("plasticity=rdeo", "plasticity=rdeo does not exist: the options are c_chain, continual_backprop, crelu,"),
    ("plasticity=fire", "plasticity=fire acts at task switches, and env=pong has one task: use a sequence"),
    ("optimizer=sdg", "optimizer=sdg does not exist: the options are adam, adamw, custom, muon, rmsprop, sgd"),
    ("optimizer.name=sgd", "optimizer.name=sgd has other settings: choose optimizer=sgd"),
    ("optimizer.name=my.Adam", "a class by its dotted path goes with optimizer=custom optimizer.name=my.Adam"),
    ("optimizer.beta1=1", "optimizer.beta1=1.0, expected 0.99999 or less"),
    ("plasticity.every=3", "there is no key 'plasticity.every'"),
    ("plasticity.name=redo", "plasticity.name=redo has other options than []: choose plasticity=redo"),
    ("plasticity.name=reddo", "There is no plasticity method 'reddo'; the nearest is 'redo'"),
    ("plasticity=layer_norm_l2", "plasticity=layer_norm_l2 needs LayerNorm: add agent.nap=true"),
    (
        "agent=rainbo",
        "agent=rainbo does not exist: "
        "the options are btr, btr_small, c51, data_efficient_rainbow, dqn, dqn_minatar, dqn_small, iqn, munchausen, "
        "qr_dqn, rainbow, rainbow_small: did you mean agent=rainbow?",
    ),
    ("env=atary", "env=atary does not exist: the options are atari, catch, gym,"),
    ("nap=ful", "nap=ful does not exist: the options are full, norm_only, project_only"),
    ("experiment=quik", "experiment=quik does not exist: the options are"),
    (
        "agent/head=c51",
        "agent/head=c51 does not exist: the options are categorical, expected, implicit_quantile, quantile",
    ),
    (
        "agent.munchausen.alpha=0.9",
        "agent.munchausen.alpha mixes returns over actions, which a categorical head cannot",
    ),
    ("agent.torso=resnet", "agent.torso=resnet is none of nature, data_efficient, impala"),
    ("nap.norm=lyer", "nap.norm=lyer is none of"),
    ("agent.discount=nan", "agent.discount=nan, expected a number in [0, 1]"),
    ("agent.nap=3", "agent.nap=3 is not true or false"),
    ("agent.nap=maybe", "agent.nap=maybe is not true or false"),
]


OUT_OF_RANGE = [
    ("threads=0", "threads=0, expected auto or a number from 1 to 1024"),
    ("threads=many", "threads=many, expected auto or a number from 1 to 1024"),
    ("frames=-5", "frames=-5, expected 32 or more"),
    ("frames=31", "frames=31, expected 32 or more"),
    ("agent.discount=1.5", "agent.discount=1.5, expected a number in [0, 1]"),
    ("agent.batch_size=0", "agent.batch_size=0, expected 1 or more"),
    ("agent.update_every_steps=0", "agent.update_every_steps=0.0, expected a number above 0"),
    ("agent.learning_rate=-1", "agent.learning_rate=-1.0, expected a number above 0"),
    ("agent.min_replay_steps=0", "agent.min_replay_steps=0, expected 32 or more"),
    ("agent.head.atoms=1", "agent.head.atoms=1, expected 2 or more"),
    ("agent.head.v_min=20", "agent.head.v_min=20.0"),
    ("agent.noisy_sigma0=-1", "agent.noisy_sigma0=-1.0"),
    ("replay.capacity=10", "replay.capacity=10, expected 1000 or more"),
    ("env.num_envs=0", "env.num_envs=0, expected 1 or more"),
    ("env.protocol.sticky_actions=2", "env.protocol.sticky_actions=2.0, expected a number in [0, 1]"),
    ("env.protocol.noop_max=0", "env.protocol.noop_max=0, expected 1 or more"),
    ("logger.every_updates=0", "logger.every_updates=0, expected 1 or more"),
]


def test_gains_are_not_projected_where_no_weight_is() -> None:
    with pytest.raises(ValueError, match=r"nap\.affine=project with nap\.project=false: use nap\.affine=regularize"):
        checked(*SMALL, "agent.nap=true", "nap=norm_only", "nap.affine=project")


@pytest.mark.parametrize(("override", "sentence"), BAD, ids=[override for override, _ in BAD])
def test_bad_input_is_one_sentence(override: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError) as error:
        checked(*SMALL, override)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return cli.compose("config", SMALL)


@pytest.mark.parametrize(("override", "sentence"), OUT_OF_RANGE, ids=[override for override, _ in OUT_OF_RANGE])
def test_a_value_out_of_its_range_is_one_sentence(override: str, sentence: str, composed: DictConfig) -> None:
    changed = composed.copy()
    with read_write(changed):
        changed.merge_with_dotlist([override])
    with pytest.raises(ValueError) as error:
        to_config(changed)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer=sgd", "optimizer.momentum=-1"], "optimizer.momentum=-1.0, expected a number of 0 or more"),
        (["optimizer=muon", "optimizer.ns_steps=100"], "optimizer.ns_steps=100, expected 99 or less"),
        (
            ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"],
            "optimizer.nesterov=true with optimizer.momentum=0.0, expected a momentum above 0",
        ),
        (["optimizer=custom", "optimizer.name=NAdam"], "optimizer.name=NAdam is no dotted path of a class"),
        (
            ["optimizer=custom", "optimizer.options={lr: 1.0}"],
            "optimizer.options.lr is set by agent.learning_rate and the network: leave it out",
        ),
        (["optimizer=custom", "optimizer.options=3"], "optimizer.options=3, expected arguments by name such as {eps"),
        (["plasticity=redo", "plasticity.every=0"], "plasticity.every must be a whole number of 1 or more; got 0."),
        (["plasticity=redo", "plasticity.tau=nan"], "plasticity.tau must be a number of 0 or greater; got nan."),
        (["plasticity=l2", "plasticity.coefficient=inf"], "plasticity.coefficient must be a number greater than 0"),
        (["plasticity=shrink_perturb", "plasticity.shrink=2"], "plasticity.shrink must lie between 0 and 1; got 2"),
        (["plasticity=continual_backprop", "plasticity.maturity=-1"], "plasticity.maturity must be a whole number"),
        (["plasticity=injection", "plasticity.at=0"], "plasticity.at must be a whole number of 1 or more; got 0."),
        (["plasticity=injection", "frames=20000", "plasticity.at=9999"], "plasticity.at=9999, expected 1000 or less"),
        (["plasticity=crelu", "agent.torso=impala"], "skip connections of agent.torso=impala"),
        (["plasticity=layer_norm_l2", "agent.nap=true", "nap.norm=rms"], "plasticity=layer_norm_l2 needs LayerNorm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_method_that_cannot_run_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        checked(*SMALL, *overrides)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_run_from_before_there_were_methods_is_read_as_one_without() -> None:
    config = checked(*SMALL)
    plain = schema.to_dict(config)
    del plain["plasticity"]
    assert schema.from_dict(plain) == config


def test_a_value_in_the_place_of_a_section_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="."):
        checked(*SMALL, "agent.epsilon=${seed}", "+agent.epsilon.start=0.5")


def test_quantiles_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"agent.head.quantiles=0, expected 1 or more"):
        checked(*SMALL, "agent/head=quantile", "agent.head.quantiles=0")
    with pytest.raises(ValueError, match=r"agent.head.kappa=0.0, expected a number above 0"):
        checked(*SMALL, "agent/head=quantile", "agent.head.kappa=0")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("frames=400001", "frames=400001 is more than the whole sequence, 400000: raise env.cycles"),
        ("env.games=[]", "env.games is empty"),
        ("env.games=[pong,brakeout]", "unknown game 'brakeout': did you mean 'breakout'?"),
        ("env.games=[pong,joust]", "game 'joust' cannot be played: ale-py has its ROM, but not its rules"),
        ("env.cycles=0", "env.cycles=0, expected 1 or more"),
        ("env.frames_per_game=31", "env.frames_per_game=31, expected 32 or more"),
        ("env.on_switch.schedule=resart", "env.on_switch.schedule=resart is none of [continue, restart]"),
        ("env.on_switch.replay=forget", "env.on_switch.replay=forget is none of"),
        ("env.game=pong", "there is no key 'env.game'"),
    ],
)
def test_bad_input_of_a_sequence_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        checked("env=sequential_atari", "env.frames_per_game=20000", *SMALL, override)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_linear_resizing_without_opencv_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"env.protocol.resize=linear needs OpenCV"):
        checked("env.protocol.resize=linear")


def test_nap_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="does nothing: use agent.nap=false"):
        checked(*SMALL, "agent.nap=true", "nap.normalize=false", "nap.project=false")


def test_more_replay_than_memory_is_refused_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2_000_000_000)
    with pytest.raises(ValueError) as error:
        checked()
    sentence = str(error.value)
    assert sentence.startswith("replay.capacity=1000000 needs 7.1 GB of memory and 2.0 GB are free: replay.capacity=")
    fits = int(sentence.split("replay.capacity=")[2].split()[0])
    assert checked(f"replay.capacity={fits}").replay.capacity == fits
    monkeypatch.setattr(memory, "available_memory", lambda: None)  # where the system does not tell, nothing is refused
    assert checked().replay.capacity == 1_000_000


def test_the_replay_stands_on_the_gpu_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    auto, on_gpu, on_cpu = (checked(*SMALL, f"replay.device={name}") for name in ("auto", "auto", "cpu"))
    on_gpu.replay.device = schema.Device.cuda  # which the check of a machine without a GPU refuses
    assert memory.replay_device(auto, cpu) == cpu
    needed = 2000 * (84 * 84 + 34)
    for free, beside_the_learner in ((needed, gpu), (needed - 1, cpu)):
        monkeypatch.setattr(memory, "free_device_memory", lambda device, free=free: free)
        assert memory.replay_device(auto, gpu) == beside_the_learner
        assert memory.replay_device(on_cpu, gpu) == cpu
        if free == needed:
            assert memory.replay_device(on_gpu, gpu) == gpu
    with pytest.raises(ValueError, match="replay.capacity=1999 would fit, or use replay.device=cpu"):
        memory.replay_device(on_gpu, gpu)


def test_a_replay_on_the_gpu_needs_no_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1)
    monkeypatch.setattr(memory, "free_device_memory", lambda device: 1 << 40)
    monkeypatch.setattr(memory, "pick_device", lambda name: torch.device("cuda", 0))
    assert checked(*SMALL).replay.capacity == 2000
    with pytest.raises(ValueError, match="are free: replay.capacity="):
        checked(*SMALL, "replay.device=cpu")


VALUES = ["true", "null", "-1", "0", "1", "3", "2.5", "1e-3", "nan", "inf", "1e9", "ture", "pong", "[]", "{}", "[a,b]"]
VALUES += ["20min"]
VALUES += ["'a b'", "''", "{a:1}", "64", "1000", "${seed}", "${nothing}", "???", "a=b", "[1", "keep", "layer", "full"]
WRONG_KEYS = ["agent.nop", "sed", "agent", "env", "nap", "agent.head.atom", "a.b.c", "agent.epsilon", "hydra.x", "x y"]


def random_override(rng: random.Random, keys: list[str]) -> str:
    key = rng.choice(keys) if rng.random() < 0.8 else rng.choice(WRONG_KEYS)
    if rng.random() < 0.1:
        return rng.choice([f"~{key}", key, f"{key}=", f"+{key}", f"agent={rng.choice(['dqn', 'rainbow', 'dqm'])}"])
    return f"{rng.choice(['', '', '', '+', '++'])}{key}={rng.choice(VALUES)}"


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def try_overrides(count: int, seed: int) -> tuple[int, int]:
    """(valid, refused) of random command lines; anything else than a Config or one sentence raises."""
    rng = random.Random(seed)
    keys = list(leaves(schema.to_dict(checked(*SMALL))))
    valid = refused = 0
    for _ in range(count):
        overrides = [random_override(rng, keys) for _ in range(rng.choice([1, 1, 2]))]
        try:
            config = checked(*SMALL, *overrides)
        except (ValueError, OSError) as error:
            assert str(error) and "\n" not in str(error), overrides
            refused += 1
        except Exception as error:
            raise AssertionError(f"{overrides} raised {type(error).__name__}: {error}") from error
        else:
            assert isinstance(config, Config)
            assert schema.from_dict(json.loads(json.dumps(schema.to_dict(config)))) == config, overrides
            valid += 1
    return valid, refused


@pytest.mark.parametrize("key", ["agent.epsilon", "agent.head", "env.protocol", "agent.munchausen"])
@pytest.mark.parametrize("value", ["${seed}", "${name}", "${replay}"])
def test_an_interpolation_in_the_place_of_a_group_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=.*expected"):
        checked(*SMALL, f"{key}={value}")


@pytest.mark.parametrize("key", ["agent.munchausen.clip", "agent.munchausen.temperature", "agent.learning_rate"])
def test_nan_is_no_number_also_where_nothing_reads_it(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=nan, expected"):
        checked(*SMALL, f"{key}=nan")


def test_random_overrides_give_a_config_or_a_sentence_and_nothing_else() -> None:
    valid, refused = try_overrides(60, seed=2)
    assert valid > 3 and refused > 20


@pytest.mark.slow
def test_three_thousand_random_overrides_give_a_config_or_a_sentence_and_nothing_else() -> None:
    assert min(try_overrides(3_000, seed=1)) > 200
