"""Zips that SB3 writes load whatever their networks, sizes, versions and settings: taken, or named in a warning."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from nap_rl.nn import NetworkSpec
from nap_rl.sb3 import ZipError, layout, load, transfer
from nap_rl.sb3.data_json import DataError, parse, without_long_strings
from nap_rl.sb3.model import read_model
from tests.sb3.envs import Pictures


class Anything(gymnasium.Env[Any, int]):
    """Observations drawn from a space; three actions."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(3)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Zips of small models on CartPole, by class and settings; each is trained once."""
    folder, made = tmp_path_factory.mktemp("trained"), {}  # type: ignore[var-annotated]

    def train(algorithm: Any = DQN, steps: int = 60, **settings: Any) -> Path:
        key = repr((algorithm, steps, sorted(settings.items(), key=str)))
        if key not in made:
            kwargs = {"learning_starts": 10, "buffer_size": 100, "seed": 0, "device": "cpu", **settings}
            kwargs["policy_kwargs"] = {"net_arch": [8], **settings.get("policy_kwargs", {})}
            model = algorithm("MlpPolicy", "CartPole-v1", **kwargs)
            model.learn(steps)
            made[key] = folder / f"{len(made)}.zip"
            model.save(made[key])
        return made[key]

    return train


def changed(path: Path, to: Path, version: str | None = None, **fields: Any) -> Path:
    """The zip with other fields of `data`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["data"] = json.dumps({**json.loads(members["data"]), **fields}).encode()
    if version is not None:
        members["_stable_baselines3_version"] = version.encode()
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return to


def with_rate(path: Path, to: Path, **settings: Any) -> Path:
    """The zip with other settings of the optimizer."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    state = torch.load(io.BytesIO(members["policy.optimizer.pth"]), weights_only=True)
    state["param_groups"][0].update(settings)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in {**members, "policy.optimizer.pth": buffer.getvalue()}.items():
            archive.writestr(name, content)
    return to


def warned(path: Path) -> tuple[Any, list[str]]:
    """The policy, and the warnings that loading it gave, without the file's name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy = load(path, capacity=100)
    assert all(str(warning.message).startswith(str(path)) for warning in caught)
    return policy, [str(warning.message).removeprefix(str(path)).lstrip(": ") for warning in caught]


def agrees(model: Any, path: Path, observations: Any) -> None:
    """The loaded policy acts as the model that SB3 has."""
    model.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load(path, capacity=100)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(ours.predict(observations)[0], expected)
    torso, read = layout.read_torso(path), ours.model
    assert torso is not None and (torso.name, torso.net_arch) == (read.spec.torso, read.spec.net_arch)
    assert torso.fits(read.stack, read.frame_shape) and not torso.fits(read.stack + 1, read.frame_shape)
    ours.agent.act(ours.model.observations.encode(observations)[0], epsilon=0.5)


# Networks and observations.


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
@pytest.mark.parametrize("net_arch", [[64], [256, 256, 64], []])
def test_any_number_of_hidden_layers_behind_the_convolutions(
    algorithm: Any, net_arch: list[int], tmp_path: Path
) -> None:
    quantiles = {"n_quantiles": 5} if algorithm is QRDQN else {}
    kwargs = {"net_arch": net_arch, "features_extractor_kwargs": {"features_dim": 24}, **quantiles}
    model = algorithm("CnnPolicy", Pictures((40, 40, 1)), buffer_size=10, policy_kwargs=kwargs, seed=0, device="cpu")
    observations = np.random.default_rng(0).integers(0, 256, (20, 40, 40, 1), dtype=np.uint8)
    agrees(model, tmp_path / "model.zip", observations)


@pytest.mark.parametrize("net_arch", [[64], [256, 256, 64]])
def test_any_number_of_hidden_layers_of_vectors(net_arch: list[int], tmp_path: Path) -> None:
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, policy_kwargs={"net_arch": net_arch}, seed=0, device="cpu")
    agrees(model, tmp_path / "model.zip", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "stack"),
    [((84, 84, 1), 1), ((84, 84, 1), 8), ((64, 64, 1), 4), ((40, 52, 1), 2), ((50, 60, 3), 1), ((36, 36, 3), 2)],
)
def test_images_of_any_size_colours_and_stack(shape: tuple[int, ...], stack: int, tmp_path: Path) -> None:
    env: Any = DummyVecEnv([lambda: Pictures(shape)])
    env = VecFrameStack(env, stack) if stack > 1 else env
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    model = DQN("CnnPolicy", env, buffer_size=10, policy_kwargs=kwargs, seed=0, device="cpu")
    channels = shape[-1] * stack
    observations = np.random.default_rng(0).integers(0, 256, (20, *shape[:2], channels), dtype=np.uint8)
    agrees(model, tmp_path / "model.zip", observations)
    replay = load(tmp_path / "model.zip", capacity=100).agent.replay
    assert replay.stack * int(np.prod(replay.frames.shape[1:])) == channels * shape[0] * shape[1]
    assert replay.stack == (stack if shape[-1] == 1 else 1)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(b=spaces.Discrete(3), a=spaces.Box(-1, 1, (2, 2), np.float32), c=spaces.MultiBinary([2, 3])),
        spaces.Dict(
            OrderedDict(
                second=spaces.Box(-np.arange(1, 3, dtype=np.float32), np.ones(2, np.float32)),
                first=spaces.Discrete(2),
            )
        ),
        spaces.Dict(wheel=spaces.MultiDiscrete([3, 4]), alone=spaces.Box(0, 9, (1,), np.float64)),
    ],
    ids=["sorted", "ordered", "mixed"],
)
def test_dicts_of_vectors_are_observed_entry_by_entry(space: spaces.Dict, tmp_path: Path) -> None:
    model = DQN("MultiInputPolicy", Anything(space), buffer_size=10, seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    ours = load(tmp_path / "model.zip", capacity=100)
    for _ in range(20):
        observation = space.sample()
        assert ours.predict(observation)[0] == model.predict(observation, deterministic=True)[0]


def test_a_dict_whose_entries_the_zip_does_not_say_is_refused_by_shape(tmp_path: Path) -> None:
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Box(-1, 1, (2,), np.float32))
    DQN("MultiInputPolicy", Anything(space), buffer_size=10, device="cpu").save(tmp_path / "model.zip")
    silent = changed(tmp_path / "model.zip", tmp_path / "silent.zip", observation_space={":type:": "Dict"})
    policy = load(silent, capacity=100)
    assert policy.predict(np.zeros(4, np.float32))[0].shape == ()
    with pytest.raises(ValueError, match=r"an observation is a dict with a, b, expected shape \[4\] or N of them"):
        policy.predict(space.sample())


@pytest.mark.parametrize("said", ["{'a': Box(0, 1, (1000000, 1000000), float32)}", "{'a': Discrete(9", "{}", "[1, 2]"])
def test_entries_that_do_not_fit_the_layers_are_not_believed(said: str, tmp_path: Path) -> None:
    space = spaces.Dict(a=spaces.Box(-1, 1, (4,), np.float32))
    DQN("MultiInputPolicy", Anything(space), buffer_size=10, device="cpu").save(tmp_path / "model.zip")
    kind = "<class 'gymnasium.spaces.dict.Dict'>"
    strange = changed(
        tmp_path / "model.zip", tmp_path / "strange.zip", observation_space={":type:": kind, "spaces": said}
    )
    assert load(strange, capacity=100).predict(np.zeros((3, 4), np.float32))[0].shape == (3,)


def test_images_under_mlp_policy_are_divided_by_255_as_in_sb3(tmp_path: Path) -> None:
    model = DQN(
        "MlpPolicy", Pictures((36, 36, 1)), buffer_size=10, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu"
    )
    observations = np.random.default_rng(0).integers(0, 256, (50, 36, 36, 1), dtype=np.uint8)
    agrees(model, tmp_path / "model.zip", observations)
    ours = load(tmp_path / "model.zip", capacity=100)
    stacks = torch.from_numpy(ours.model.observations.encode(observations)[0])
    with torch.no_grad():
        theirs = model.q_net(torch.from_numpy(np.moveaxis(observations, -1, 1).copy()))
        assert (ours.agent.network.q_values(stacks) - theirs).abs().max() < 1e-5


def test_without_the_shape_in_words_the_layers_tell_the_smallest_square(tmp_path: Path) -> None:
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    DQN("CnnPolicy", Pictures((64, 64, 1)), buffer_size=10, policy_kwargs=kwargs, device="cpu").save(tmp_path / "a")
    path = changed(tmp_path / "a.zip", tmp_path / "b.zip", observation_space=None)
    height, width = read_model(path).frame_shape
    assert height == width and 57 <= height <= 64


def test_a_network_with_other_layers_is_refused_with_the_settings_that_fit(tmp_path: Path) -> None:
    kwargs = {"net_arch": [64], "features_extractor_kwargs": {"features_dim": 8}}
    DQN("CnnPolicy", Pictures((84, 84, 4)), buffer_size=10, policy_kwargs=kwargs, device="cpu").save(tmp_path / "model")
    network = NetworkSpec(hidden=8, head="expected", dueling=False, noisy_sigma0=None).build((84, 84), 4, 3)
    with pytest.raises(ValueError, match=r"use agent\.torso=nature agent\.net_arch=\[8\]$"):
        transfer.initialize(read_model(tmp_path / "model.zip"), network)


# What is thrown away.


def test_pickles_of_any_size_are_skipped_unread(trained: Callable[..., Path], tmp_path: Path) -> None:
    pickle = {":type:": "<class 'numpy.ndarray'>", ":serialized:": "A" * (20 << 20)}
    path = changed(trained(), tmp_path / "big.zip", _last_obs=pickle, replay_buffer=pickle)
    assert path.stat().st_size > 40 << 20
    assert load(path, capacity=100).predict(np.zeros(4))[0].shape == ()


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    return (text[i : i + size] for i in range(0, len(text), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_json_is_the_same_in_pieces_of_any_size(size: int) -> None:
    fields = {"quote": 'a "b" \\', "slashes": "\\\\" * 3, "unicode": "模型\u0000", "list": [1, {"x": None}], "": ""}
    text = json.dumps(fields).encode()
    assert without_long_strings(pieces(text, size)) == text


def test_long_strings_are_empty_and_the_rest_is_kept() -> None:
    fields = {"a": "x" * 100_000, "b": '"\\' * 50_000, "c": "kept", "d": {":serialized:": "y" * 100_000}}
    found = json.loads(without_long_strings(pieces(json.dumps(fields).encode(), 999)))
    assert found == {"a": "", "b": "", "c": "kept", "d": {":serialized:": ""}}
    with pytest.raises(DataError, match="more than 8,388,608 bytes beside the pickles"):
        without_long_strings([b"[" + b"0," * (5 << 20)])


@pytest.mark.parametrize("field", ["gamma", "batch_size", "tau", "target_update_interval", "max_grad_norm", "n_envs"])
def test_numbers_of_numpy_are_dropped_unread_and_named(
    field: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    pickled = {":type:": "<class 'numpy.float32'>", ":serialized:": "gAWV"}
    policy, said = warned(changed(trained(), tmp_path / "model.zip", version="1.8.0", **{field: pickled}))
    assert [text for text in said if text.startswith(f"{field} is pickled as numpy.float32 and is not read: ")]
    assert policy.predict(np.zeros(4))[0].shape == ()


def test_sb3_pickles_numbers_of_numpy_and_they_load(trained: Callable[..., Path]) -> None:
    """Not a zip made by hand: SB3's own."""
    path = trained(gamma=np.float32(0.9), batch_size=np.int64(8), target_update_interval=np.int64(30))
    policy, said = warned(path)
    assert sorted(text.split()[0] for text in said) == ["batch_size", "gamma", "target_update_interval"]
    assert policy.agent.replay.discount == 0.99


def test_quantiles_that_numpy_counted_are_told_by_the_layers(trained: Callable[..., Path]) -> None:
    path = trained(QRDQN, policy_kwargs={"n_quantiles": np.int64(7)})
    assert read_model(path).spec.outputs == 7


def test_a_pickle_where_sb3_writes_plain_numbers_is_refused() -> None:
    for kind in ("<class 'float'>", "<class 'numpy.evil.float32'>", "numpy.float32", None):
        text = json.dumps({"gamma": {":type:": kind, ":serialized:": "gAWV"}}).encode()
        with pytest.raises(DataError, match="has a pickle as gamma"):
            parse([text])


# What only learning needs.


@pytest.mark.parametrize("rate", [-1.4e-6, -1e-12, 20.0])
def test_a_rate_out_of_range_warns_and_acts(rate: float, trained: Callable[..., Path], tmp_path: Path) -> None:
    """A linear schedule that ran past its end leaves a negative rate in the zip."""
    policy, said = warned(with_rate(trained(), tmp_path / "model.zip", lr=rate))
    nearest = 0.0 if rate < 0 else 10.0
    assert said == [f"lr={rate:g} is out of [0, 10]: {nearest:g} is taken"]
    assert policy.agent.optimizer.param_groups[0]["lr"] == nearest
    assert policy.predict(np.zeros(4))[0].shape == ()


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [("gamma", 1.001, 1.0), ("tau", 1.5, 1.0), ("target_update_interval", 0, 1), ("n_steps", 5_000, 1_000)],
)
def test_settings_out_of_range_warn_and_act(
    field: str, value: float, nearest: float, trained: Callable[..., Path], tmp_path: Path
) -> None:
    path = changed(trained(), tmp_path / "model.zip", **{field: value})
    with pytest.warns(UserWarning, match=rf"{field}={value:g} is out of .*: {nearest:g} is taken"):
        assert load(path, capacity=2_000).predict(np.zeros(4))[0].shape == ()


def test_amsgrad_is_named(trained: Callable[..., Path], tmp_path: Path) -> None:
    _, said = warned(with_rate(trained(), tmp_path / "model.zip", amsgrad=True))
    assert said == ["amsgrad=True of the optimizer is not taken: updates are those of plain Adam"]


# Settings.


def test_everything_is_taken_from_a_plain_zip_without_a_warning(trained: Callable[..., Path]) -> None:
    assert warned(trained())[1] == []


def test_a_soft_target_is_taken(trained: Callable[..., Path]) -> None:
    policy, said = warned(trained(tau=0.005, target_update_interval=1, train_freq=1, steps=150))
    agent = policy.agent
    assert said == [] and (agent.tau, agent.target_every_updates) == (0.005, 1)
    rng = np.random.default_rng(0)
    for i in range(50):
        agent.replay.add(
            rng.normal(size=(1, 4)), np.array([i % 2]), np.array([1.0]), np.array([1.0]), np.array([i == 0])
        )

    def distance() -> float:
        pairs = zip(agent.network.parameters(), agent.target.parameters(), strict=True)
        return max(float((x - y).detach().abs().max()) for x, y in pairs)

    before = [p.clone() for p in agent.target.parameters()]
    agent.update()
    for old, new, online in zip(before, agent.target.parameters(), agent.network.parameters(), strict=True):
        assert torch.allclose(new, 0.995 * old + 0.005 * online, atol=1e-7)
    assert not torch.equal(next(agent.network.parameters()), next(agent.target.parameters()))


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        ({"train_freq": 1, "gradient_steps": 2}, 60 * 2),  # an update every half a transition
        ({"train_freq": 2, "gradient_steps": 1}, 60 // 2),
        ({"train_freq": 4, "gradient_steps": -1}, 60),  # as many updates as transitions
    ],
)
def test_the_rhythm_of_updates_is_told_by_their_number(
    settings: dict[str, int], every: int, trained: Callable[..., Path]
) -> None:
    policy, said = warned(trained(target_update_interval=60, batch_size=2, steps=240, **settings))
    assert said == [] and policy.agent.target_every_updates == every


def test_a_rhythm_that_cannot_be_told_is_named(trained: Callable[..., Path], tmp_path: Path) -> None:
    path = changed(trained(), tmp_path / "model.zip", num_timesteps=1_570, _n_updates=400)
    _, said = warned(path)
    assert said == []  # (1570 - 10) / 400 = 3.9 is about 4
    path = changed(trained(), tmp_path / "model.zip", num_timesteps=1_510, _n_updates=450)
    policy, said = warned(path)
    assert said == ["train_freq is pickled and not read: 4 steps are taken"]
    assert policy.agent.target_every_updates == 10_000 // 4


@pytest.mark.parametrize(
    ("algorithm", "version", "held"),
    [
        (DQN, "1.8.0", 1_250),
        (DQN, "2.0.0", 10_000),
        (DQN, "2.3.2", 10_000),
        (QRDQN, "1.8.0", 1_250),
        (QRDQN, "2.3.2", 1_250),
        (QRDQN, "2.4.0", 10_000),
        (QRDQN, "2.9.2", 10_000),
    ],
)
def test_the_interval_means_what_it_did_in_the_version_of_the_zip(
    algorithm: Any, version: str, held: int, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """Older versions divide target_update_interval by the number of environments before they save it."""
    path = changed(trained(algorithm), tmp_path / "model.zip", version=version, n_envs=8, target_update_interval=held)
    policy, said = warned(path)
    assert said == [] and policy.agent.target_every_updates == 10_000 // 4


def test_what_is_not_taken_is_named_once_each(trained: Callable[..., Path]) -> None:
    path = trained(
        learning_rate=lambda left: 1e-3 * left,
        exploration_fraction=1.0,
        policy_kwargs={"optimizer_class": torch.optim.RMSprop},
    )
    _, said = warned(path)
    names = ("optimizer_class", "learning_rate")
    assert len(said) == len(names) and all(any(name in text for text in said) for name in names)


def test_an_exploration_schedule_that_had_not_ended_is_named(trained: Callable[..., Path], tmp_path: Path) -> None:
    path = changed(trained(), tmp_path / "model.zip", exploration_rate=0.4)
    policy, said = warned(path)
    assert said == ["the exploration schedule to exploration_final_eps=0.05 is not taken: it stays at 0.4"]
    assert policy.exploration_rate == 0.4


# Refusals in SB3's words.


@pytest.mark.parametrize(
    ("algorithm", "env", "name"),
    [
        (PPO, "CartPole-v1", "a PPO policy"),
        (A2C, "CartPole-v1", "an A2C policy"),
        (ARS, "CartPole-v1", "an ARS policy"),
        (SAC, "Pendulum-v1", "a policy of SAC, TD3 or their like"),
    ],
)
def test_a_zip_of_another_algorithm_is_called_by_its_name(algorithm: Any, env: str, name: str, tmp_path: Path) -> None:
    algorithm("MlpPolicy", env, device="cpu").save(tmp_path / "model")
    with pytest.raises(ZipError, match=f"model.zip holds {name}: DQN, QR-DQN and Rainbow are read"):
        load(tmp_path / "model.zip")


def test_ppo_with_a_shared_cnn_is_called_ppo(tmp_path: Path) -> None:
    """Its policy.pth names the same storage three times."""
    PPO("CnnPolicy", Pictures((36, 36, 1)), n_steps=4, batch_size=4, device="cpu").save(tmp_path / "model")
    with pytest.raises(ZipError, match="holds a PPO policy"):
        load(tmp_path / "model.zip")


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n")
    with pytest.raises(ZipError, match="is a pointer of Git LFS and not the zip itself: fetch it with git lfs pull"):
        load(path)


def test_multi_input_policies_are_named(tmp_path: Path) -> None:
    class Entries(Pictures):
        def __init__(self) -> None:
            self.observation_space = spaces.Dict(a=spaces.Box(0, 255, (36, 36, 1), np.uint8), b=spaces.Discrete(2))  # type: ignore[assignment]

    DQN("MultiInputPolicy", Entries(), buffer_size=10, device="cpu").save(tmp_path / "model")
    with pytest.raises(ZipError, match="has a MultiInputPolicy: CnnPolicy and MlpPolicy are read"):
        load(tmp_path / "model.zip")


def test_a_file_of_torch_save_is_called_one(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "policy.pth")
    with pytest.raises(ZipError, match=r"is a file of torch.save, .* save the whole model by model.save\(\)"):
        load(tmp_path / "policy.pth")


def test_the_suffix_may_be_left_out_as_in_sb3(trained: Callable[..., Path]) -> None:
    assert load(trained().with_suffix(""), capacity=100).predict(np.zeros(4))[0].shape == ()
