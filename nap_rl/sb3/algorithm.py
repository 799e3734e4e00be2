"""Rainbow as an algorithm of Stable-Baselines3: `learn`, `predict`, `save`, `load`, its callbacks and its logger.

SB3 steps the environments, calls the callbacks and counts; what stores and learns is our `ValueAgent` with its
`Replay`: frames are kept once where environments are frame-stacked, returns are n-step, sampling is prioritised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, TensorDict
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env import VecEnv
from torch.utils._pytree import tree_map_only

from nap_rl.agents import Diverged, Update, ValueAgent
from nap_rl.agents.whole_update import learn_whole_if_worth
from nap_rl.nap import Projector
from nap_rl.replay import Replay
from nap_rl.sb3 import archive, rainbow_zip, replay_file
from nap_rl.sb3.model import read_model
from nap_rl.sb3.networks import make_spec
from nap_rl.sb3.observations import Array, NotFinite, Observations
from nap_rl.sb3.policy import RainbowPolicy
from nap_rl.sb3.settings import DEFAULTS, make_replay, make_settings
from nap_rl.sb3.vec_frames import frame_layout
from nap_rl.schedules import Linear

CHECK_EVERY = 100  # updates on a GPU, which a look at the loss waits for


class Rainbow(OffPolicyAlgorithm):
    """Rainbow (Hessel et al. 2018), with or without NaP, for discrete actions.

    Args:
        policy: "CnnPolicy", "MlpPolicy", or "MultiInputPolicy" for a Dict of vectors.
        env: an environment, a VecEnv of any kind, or the id of an environment. Its observations may come in any dtype
            and container: they are cast to their space's dtype.
        nap: normalisations in front of every nonlinearity, and a projection after each update.
        compile: small networks' updates on a CPU become one function: "auto" (from 20,000 a `learn` on), "on", "off".
        policy_kwargs: some fields of `NetworkSpec`: hidden, net_arch, head, outputs, noisy_sigma0, ...
        stats_window_size, tensorboard_log, verbose, seed, device: as in every algorithm of SB3.
        settings: some fields of `Settings`; see `DEFAULTS` for their values by policy.

    Attributes:
        agent: the `ValueAgent`; `agent.replay` is the replay.
        projector: what projects; None without `nap`.

    Raises:
        ValueError: a setting, an observation or an environment that cannot be used; one sentence.
        Diverged: in `learn` and `predict`, an observation, a reward or the loss is NaN or infinite.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(DEFAULTS, RainbowPolicy)
    policy: RainbowPolicy
    observations: Observations
    agent: ValueAgent

    def __init__(
        self,
        policy: str,
        env: GymEnv | str | None,
        *,
        nap: bool = False,
        compile: str = "auto",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        self.policy_name = policy
        self.spec = make_spec(policy, policy_kwargs or {}, nap)
        self.settings = make_settings(policy, settings)
        self.nap, self.compile = nap, compile
        if compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is '{compile}', expected auto, on or off")
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # None where a zip is loaded to predict
            self.settings.learning_rate,
            support_multi_env=True,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete,),
            **{
                name: getattr(self.settings, name) for name in ("buffer_size", "learning_starts", "batch_size", "gamma")
            },
        )
        self.exploration_rate = 0.0
        self.projector: Projector | None = None
        self._acted_on: tuple[Any, Array] = (None, np.empty(0))  # by `predict`: observations, and their encoding
        self._unlearnt = 0  # transitions since the last update was due
        self._updates: list[Update] = []  # since the last row of the log
        if _init_setup_model:
            if self.env is None:
                raise ValueError("env=None, expected an environment to learn in; Rainbow.load reads a zip without one")
            self.observations = Observations.of(self.observation_space, *frame_layout(self.env, self.spec.pixels))
            self._setup_model()

    def _setup_model(self) -> None:
        settings, space = self.settings, self.action_space
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.train_freq = (1, "step")  # `train` counts transitions itself
        self._convert_train_freq()
        if not isinstance(space, spaces.Discrete) or space.start != 0:
            raise ValueError(f"the actions are {space}, expected Discrete(n) that starts at 0")
        self.policy = RainbowPolicy(
            self.observations,
            space,
            self.lr_schedule,
            spec=self.spec,
            adam_eps=settings.adam_eps,
            device=self.device,
        )
        noise, sampling = (int(word) for word in np.random.SeedSequence(self.seed).generate_state(2))
        target_every = settings.target_update_interval * settings.gradient_steps // settings.train_freq
        self.agent = ValueAgent(
            self.policy.q_net,
            self.policy.optimizer,
            self._make_replay(sampling),
            double=True,
            batch_size=settings.batch_size,
            target_every_updates=max(target_every, 1),
            max_grad_norm=settings.max_grad_norm,
            seed=noise,
        )
        self.policy.q_net_target = self.agent.target
        self.replay_buffer = self.agent.replay  # type: ignore[assignment]  # CheckpointCallback asks if there is one
        if self.nap:
            self.projector = self.agent.projector = Projector(self.policy.q_net, self.policy.optimizer)

    def _make_replay(self, seed: int) -> Replay:
        # Without environments there is nothing to store: such a model is there to predict.
        capacity = self.settings.buffer_size if self.env is not None else self.n_envs * (self.settings.n_steps + 1)
        return make_replay(self.settings, capacity, self.n_envs, self.observations, seed, self.device)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Another environment of the same spaces, number and frame stacking; ValueError where they differ."""
        wrapped, predicting = self._wrap_env(env, self.verbose), self.env is None
        self._check_env(wrapped)
        super().set_env(wrapped, force_reset)
        if predicting:
            self.agent.replay = self._make_replay(seed=self.agent.replay.generator.initial_seed())
            self.replay_buffer = self.agent.replay  # type: ignore[assignment]

    def _check_env(self, env: VecEnv) -> None:
        check_for_correct_spaces(env, self.observation_space, self.action_space)
        stack, frame_shape = frame_layout(env, self.spec.pixels)
        before = self.observations
        if (stack, frame_shape) != (before.stack, before.frame_shape):
            raise ValueError(
                f"the environment stacks {stack} frames of {list(frame_shape)}, but this model was made for "
                f"{before.stack} of {list(before.frame_shape)}: wrap it in VecFrameStack as it was then"
            )

    @property
    def frame_stack(self) -> int:
        """Frames in an observation."""
        return self.observations.stack

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return self.observations.frame_shape

    # Acting and storing.

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[Any], ...] | None]:
        """Actions [N] (0-dim for one observation): greedy at the mean weights, or else under noise and epsilon."""
        del episode_start
        stacks, batched = self._encode(observation)
        self._acted_on = (observation, stacks)
        epsilon = 0.0 if deterministic else self.exploration_rate
        actions = self.agent.act(stacks, epsilon, noisy=not deterministic)
        return (actions if batched else actions.reshape(())), state

    def _store_transition(
        self,
        replay_buffer: object,
        buffer_action: npt.NDArray[Any],
        new_obs: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        reward: npt.NDArray[Any],
        dones: npt.NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Into our ring: the newest frame of each stack, and the last frame of each episode that ended."""
        assert self._last_episode_starts is not None
        replay, dones = self.agent.replay, np.asarray(dones, dtype=bool).reshape(-1)
        truncated = np.array([bool(info.get("TimeLimit.truncated")) for info in infos])
        first = np.asarray(self._last_episode_starts, dtype=bool).reshape(-1)
        seen, stacks = self._acted_on
        frames = stacks[:, -1] if seen is self._last_obs else self._newest_frames(self._last_obs)
        replay.add(frames, np.asarray(buffer_action).reshape(-1), self._rewards(reward), ~dones | truncated, first)
        if dones.any():
            ended = np.flatnonzero(dones)
            replay.end_episode(self._last_frames(new_obs, infos, ended), ended)
        self._last_obs = new_obs
        self._last_episode_starts = dones
        if self.num_timesteps > self.settings.learning_starts:
            self._unlearnt += len(dones)

    def _last_frames(self, new_obs: Any, infos: list[dict[str, Any]], ended: npt.NDArray[np.int64]) -> Array:
        """[K, *frame_shape]: what ended episodes ended with; as in SB3, `new_obs` where an environment does not say."""
        frames = self._newest_frames(new_obs)[ended]
        for row, env in enumerate(ended):
            last = infos[env].get("terminal_observation")
            if last is not None:
                frames[row] = self._newest_frames(last)[0]
        return frames

    def _newest_frames(self, observations: Any) -> Array:
        frames: Array = self._encode(observations)[0][:, -1]
        return frames

    def _encode(self, observations: Any) -> tuple[Array, bool]:
        try:
            return self.observations.encode(observations)
        except NotFinite as error:
            raise Diverged(f"diverged at step {self.num_timesteps}: {error}") from None

    def _rewards(self, reward: Any) -> npt.NDArray[np.float32]:
        rewards = np.asarray(reward, dtype=np.float32).reshape(-1)
        if not np.isfinite(rewards).all():
            bad = rewards[~np.isfinite(rewards)][0]
            raise Diverged(f"diverged at step {self.num_timesteps}: a reward is {bad}")
        return rewards

    def _on_step(self) -> None:
        settings, progress = self.settings, 1.0 - self._current_progress_remaining
        epsilon = Linear(settings.exploration_initial_eps, settings.exploration_final_eps)
        self.exploration_rate = epsilon(min(progress / settings.exploration_fraction, 1.0))
        self.logger.record("rollout/exploration_rate", self.exploration_rate)

    # Learning.

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """The updates that are due by `Settings.train_freq`; SB3 calls this after each step of the vector."""
        settings, progress = self.settings, 1.0 - self._current_progress_remaining
        due, self._unlearnt = divmod(self._unlearnt, settings.train_freq)
        if due == 0 or len(self.agent.replay) == 0:
            return
        self._update_learning_rate(self.policy.optimizer)
        importance = Linear(settings.importance_initial, settings.importance_final)(min(progress, 1.0))
        for _ in range(due * settings.gradient_steps):
            self._updates.append(self._update(importance))
        self._n_updates = self.agent.updates
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update(self, importance: float) -> Update:
        try:
            update = self.agent.update(importance)
        except Diverged as error:
            raise Diverged(f"diverged at step {self.num_timesteps}: {error}") from None
        if self.device.type == "cpu" or self.agent.updates % CHECK_EVERY == 0:
            loss = float(update.loss)
            if not math.isfinite(loss):
                raise Diverged(f"diverged at step {self.num_timesteps}: the loss is {loss}")
        return update

    def dump_logs(self) -> None:
        """A row of the log. Losses since the last one are read here, so that no update waits for them."""
        if self._updates:
            losses, norms = (torch.stack(column).mean() for column in zip(*self._updates, strict=True))
            self._updates.clear()
            self.logger.record("train/loss", float(losses))
            self.logger.record("train/grad_norm", float(norms))
            if self.projector is not None:
                self.logger.record("nap/norm_drift", float(self.projector.max_relative_drift()))
        super().dump_logs()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "Rainbow",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Rainbow:
        """`total_timesteps` transitions over all environments, with a row of the log every `log_interval` episodes."""
        updates = total_timesteps * self.settings.gradient_steps / self.settings.train_freq
        learn_whole_if_worth(self.agent, updates, self.compile)
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    # Zips.

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Copies: compiled updates keep all weights side by side, and torch.save takes the whole of it with each."""
        return tree_map_only(torch.Tensor, torch.Tensor.clone, super().get_parameters())  # type: ignore[no-any-return]

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """As in every algorithm of SB3."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self.agent.on_new_state()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """A zip of plain JSON and tensors, random generators included, without a pickle in it.

        The replay is apart (`save_replay_buffer`); a learning rate that is a function is not kept.

        Args:
            path: a path, to which ".zip" is added where it has no suffix, or a binary file.
            exclude: names of fields of `data` to leave out.

        Raises ValueError where `include` asks for objects, which only a pickle could hold.
        """
        if include:
            raise ValueError(f"include={list(include)!r:.60}: a zip of Rainbow holds no further objects")
        data = rainbow_zip.data(self)
        for name in exclude or ():
            data.pop(name, None)
        variables = rainbow_zip.variables(self)
        archive.write(path, data, self.policy.state_dict(), self.policy.optimizer.state_dict(), variables)

    @classmethod
    def load(
        cls,
        path: Any,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Rainbow:
        """From a zip that `save` wrote, which need not be trusted: nothing in it is unpickled.

        Args:
            path: a path, with or without ".zip".
            env: to learn on in; without it the model is there to predict, until `set_env`.
            custom_objects, kwargs: arguments of the constructor other than those saved.
            force_reset: reset the environment before learning on; False continues the episodes that were running.

        Raises:
            FileNotFoundError: there is no such file.
            ZipError: it is no sound zip of Rainbow, or `env` does not fit it.
        """
        if print_system_info:
            get_system_info()
        saved = read_model(archive.with_suffix(path))
        try:
            if saved.algorithm != "Rainbow":
                raise ValueError(f"it is of {saved.algorithm}, which nap_rl.sb3.load reads")
            policy, arguments = rainbow_zip.arguments(saved)
            arguments |= {"device": device, "_init_setup_model": False, **(custom_objects or {}), **kwargs}
            model = cls(policy, env, **arguments)
            model.observation_space, model.observations = saved.observations.space, saved.observations
            if model.env is None:
                model.action_space = spaces.Discrete(saved.actions)
                model.n_envs = int(archive.number(saved.hints, "n_envs", 1, 1, 100_000))
            else:
                model._check_env(model.env)
            model._setup_model()
            rainbow_zip.restore(model, saved, force_reset)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise archive.ZipError(f"{path} gives no Rainbow here: {error}") from None
        return model

    def save_replay_buffer(self, path: Any) -> None:
        """The replay as one safetensors file, with its priorities and its generator."""
        archive.write_whole(path, replay_file.encode(self.agent.replay))

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """What `save_replay_buffer` wrote, into a model of the same settings and number of environments.

        Raises ValueError where the file is damaged or of another shape; the replay then is as it was.
        """
        replay = self._make_replay(seed=0)
        replay_file.decode(replay, Path(path))
        self.agent.replay.adopt(replay)
