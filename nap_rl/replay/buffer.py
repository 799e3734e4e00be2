"""The frame ring: frames are kept once; stacks, n-step returns and bootstrap states are derived when sampled.

Each environment fills a column of `length` slots of its own. So an episode may end in one environment while the others
go on. A slot holds one frame and the transition from it:

    slot          t          t+1         t+2          t+3 = end of the episode
    frame         f_t        f_t+1       f_t+2        f_t+3 (only bootstrapped from)      f' of the next episode
    action        a_t        a_t+1       a_t+2        -                                    a'
    reward        r_t+1      r_t+2       r_t+3        -
    discount      0 where a_t led to a terminal state or a lost life, else 1
    first         1          0           0            0                                    1

A sampled start t with n = 3 gathers 4 + n consecutive frames once, which holds both states:

    offset       -3  -2  -1   0   1   2   3
    s_tm1         x   x   x   x
    s_t (m=3)                 x   x   x   x        m = steps to the bootstrap state, n or fewer at an episode's end
    s_t (m=2)             x   x   x   x            here the episode was cut after two steps
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_rl.replay.priorities import Priorities
from nap_rl.replay.slots import Array, Indices, put


class Transitions(NamedTuple):
    """A batch of n-step transitions, on the replay's device as sampled."""

    s_tm1: Tensor  # [B, C, H, W] uint8, oldest frame first, zeros before the episode's first frame
    a_tm1: Tensor  # [B] int64
    r_t: Tensor  # [B] float32: sum_{j<m} (prod_{i<j} discount_i) reward_j, each reward clipped
    discount_t: Tensor  # [B] float32: prod_{i<m} discount_i; 0 where a terminal state or a lost life came first
    s_t: Tensor  # [B, C, H, W] uint8: m steps later, m <= n
    weights: Tensor  # [B] float32: importance weights, the largest is 1
    slots: Tensor  # [B] int64: where each is in the ring
    serials: Tensor  # [B] int64: which lap of the ring wrote the slot

    def to(self, device: torch.device) -> Transitions:
        """The batch on the learner's device, but for slots and serials, which only the replay reads.

        Copies from the host to a GPU go through pinned memory, and nothing waits for them.
        """
        if self.a_tm1.device == device:
            return self
        read = [tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self[:6]]
        return Transitions._make([*(tensor.to(device, non_blocking=True) for tensor in read), self.slots, self.serials])


class Replay:
    """Prioritised n-step replay over a ring of single frames.

    Args:
        capacity: transitions of a full ring, over all environments. The newest n of each environment cannot be sampled
            yet, unless their episode ended: their n-step windows are not complete.
        num_envs: columns of the ring, which share `capacity` evenly (rounded up).
        frame_shape: shape of one frame, for example (84, 84).
        stack: C, frames in a state.
        n_steps: n of the n-step return.
        discount: gamma, per agent step.
        reward_clip: rewards are clipped to [-c, c] when sampled (kept raw in the ring); None leaves them.
        exponent, uniform_probability: see `Priorities`. A new transition gets the largest priority seen (1 at first).
        max_priority: raw priorities are clipped to [0, max_priority] (dqn_zoo: 100).
        seed: of the sampling generator.
    """

    CONSTANT = ("_offsets", "_stack_places")
    TENSORS = ("frames", "actions", "rewards", "discounts", "first", "serials", "largest_priority", *CONSTANT)

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        *,
        frame_shape: Sequence[int] = (84, 84),
        frame_dtype: torch.dtype = torch.uint8,
        stack: int = 4,
        n_steps: int = 3,
        discount: float = 0.99,
        reward_clip: float | None = 1.0,
        exponent: float = 0.5,
        uniform_probability: float = 1e-3,
        max_priority: float = 100.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if n_steps < 1 or stack < 1 or num_envs < 1:
            raise ValueError(f"n_steps, stack and num_envs must be 1 or more, got {n_steps}, {stack} and {num_envs}")
        self.n_steps = n_steps
        self.stack = stack
        self.discount = discount
        self.reward_clip = reward_clip
        self.max_priority = max_priority
        self.window = -(-capacity // num_envs)  # sampleable slots of a column
        if self.window <= n_steps:
            raise ValueError(
                f"a replay of {capacity} transitions leaves {self.window} for each of {num_envs} environments: "
                f"too few for {n_steps}-step returns"
            )
        # The oldest sampleable start still needs its stack, and `add` writes one slot ahead of the newest.
        self.length = self.window + stack + 1
        slots = num_envs * self.length
        self.device = torch.device(device)
        # torch.empty does not touch the memory, so it is taken as the ring fills. Behind the ring stands a zero frame.
        self.frames = torch.empty((slots + 1, *frame_shape), dtype=frame_dtype, device=device)
        self.frames[slots] = 0
        self.zero_slot = slots
        self.actions = torch.zeros(slots, dtype=torch.int64, device=device)
        self.rewards = torch.zeros(slots, device=device)
        self.discounts = torch.zeros(slots, device=device)
        self.first = torch.ones(slots, dtype=torch.bool, device=device)
        self.serials = torch.full((slots,), -1, dtype=torch.int64, device=device)
        self.priorities = Priorities(
            slots,
            exponent=exponent,
            uniform_probability=uniform_probability,
            device=device,
        )
        self.largest_priority = torch.ones((), device=device)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        # Host side: per column, slots ever written and steps since the episode's first frame; valid starts.
        self.counts = np.zeros(num_envs, dtype=np.int64)
        self.ages = np.full(num_envs, -1, dtype=np.int64)
        self.valid = np.zeros(slots, dtype=bool)
        self.size = 0
        self._offsets = torch.arange(-(stack - 1), n_steps + 1, device=device)  # see the picture above
        self._stack_places = torch.arange(stack, device=device)

    @staticmethod
    def nbytes(capacity: int, frame_bytes: int = 84 * 84) -> int:
        """Memory of a full ring: the frame and 34 bytes beside it for each transition."""
        return capacity * (frame_bytes + 34)

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
        return self.size

    def add(
        self,
        frames: Array,
        actions: Array,
        rewards: Array,
        discounts: Array,
        first: npt.NDArray[np.bool_],
        envs: Indices | None = None,
    ) -> None:
        """One step of every environment (or of `envs`, all different).

        frames [N, *frame_shape]: what was acted on; actions [N]; rewards [N], raw; discounts [N]: 0 where the action
        led to a terminal state or a lost life, else 1; first [N]: whether the frame began an episode.
        """
        envs = np.arange(len(self.counts)) if envs is None else envs
        at = self._advance(envs, frames, first)
        put(self.actions, at, actions)
        put(self.rewards, at, rewards)
        put(self.discounts, at, discounts)
        # The frame at serial c completes the window of the start at c - n, unless the episode is younger.
        complete = envs[self.ages[envs] >= self.n_steps]
        self._open_and_retire(envs, [(complete, self.counts[complete] - 1 - self.n_steps)])

    def end_episode(self, frames: Array, envs: Indices) -> None:
        """The last frames of the episodes that ended in `envs`: truncated ones bootstrap from them.

        frames [K, *frame_shape]; envs [K] int64, all different. Starts whose window is shorter than n become valid.
        """
        self._advance(envs, frames, np.zeros(len(envs), dtype=bool))
        # The next slot belongs to another episode, even before its first frame is written: no window may reach into it.
        put(self.first, self._flat(envs, self.counts[envs]), np.True_)
        starts = []
        for j in range(1, self.n_steps + 1):
            old_enough = envs[self.ages[envs] >= j]
            starts.append((old_enough, self.counts[old_enough] - 1 - j))
        self._open_and_retire(envs, starts)

    def sample(self, batch: int, importance_exponent: float | Tensor = 1.0) -> Transitions:
        """Draw a batch; weights are (V P(i))^-importance_exponent over the V valid starts, divided by the largest.

        A captured update keeps the V of its recording, which the division cancels.

        Raises:
            ValueError: nothing can be sampled yet.
        """
        if self.size == 0:
            raise ValueError("the replay holds no complete transition yet")
        return self.sample_at(self.priorities.draw(batch, self.generator), importance_exponent)

    def sample_at(self, u: Tensor, importance_exponent: float | Tensor = 1.0) -> Transitions:
        """The batch of a draw [2, B] of `priorities.draw`; see `sample`."""
        slots, probabilities = self.priorities.sample_at(u)
        s_tm1, a_tm1, r_t, discount_t, s_t = self.gather(slots)
        weights = (probabilities * self.size).pow(-importance_exponent)
        weights = weights / weights.max()
        return Transitions(s_tm1, a_tm1, r_t, discount_t, s_t, weights, slots, self.serials[slots])

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(s_tm1, a_tm1, r_t, discount_t, s_t) of valid starts, slots [B] int64."""
        place = slots % self.length
        index = (slots - place)[:, None] + (place[:, None] + self._offsets) % self.length  # [B, C - 1 + 1 + n]
        zero = self.stack - 1
        # episode[b, o]: a count of first frames up to offset o. Offsets of one episode have the same count.
        episode = self.first[index].cumsum(dim=1)
        same = episode == episode[:, zero, None]
        in_episode = same[:, self.stack :]  # [B, n]: the step from offset j - 1 to j is a transition
        m = in_episode.sum(dim=1, keepdim=True)  # steps to the bootstrap state

        steps = index[:, zero:-1]
        step_rewards = self.rewards[steps]
        if self.reward_clip is not None:
            step_rewards = step_rewards.clamp_(-self.reward_clip, self.reward_clip)
        step_discounts = torch.where(in_episode, self.discount * self.discounts[steps], 1.0)
        products = torch.cat([torch.ones_like(step_discounts[:, :1]), step_discounts], dim=1).cumprod(dim=1)
        r_t = (products[:, :-1] * step_rewards * in_episode).sum(dim=1)

        # An offset before the episode's first frame reads the zero frame.
        index[:, :zero] = index[:, :zero].where(same[:, :zero], self.zero_slot)
        later = index.gather(1, m + self._stack_places)
        # Two stacks of C frames are fewer than the window of C + n: 8 instead of 24 for n = 20. index_select copies
        # whole frames; indexing copies single bytes.
        both = torch.cat([index[:, : self.stack], later]).view(-1)
        stacks = self.frames.index_select(0, both).view(2, len(slots), self.stack, *self.frames.shape[1:])
        return stacks[0], self.actions[slots], r_t, products[:, -1], stacks[1]

    def update(self, slots: Tensor, serials: Tensor, priorities: Tensor) -> None:
        """New raw priorities [B] of transitions sampled earlier; slots [B] and serials [B] as sampled.

        Priorities that are NaN are dropped, and so are those of transitions overwritten or retired since. Waits for
        priorities on another device. Uniform replay (exponent 0) keeps none.
        """
        if self.priorities.exponent == 0.0:
            return
        priorities = priorities.to(self.device).clamp(0.0, self.max_priority)
        keep = (self.serials[slots] == serials) & self.priorities.is_valid(slots) & ~priorities.isnan()
        largest = torch.where(keep, priorities, 0.0).max()
        self.largest_priority.copy_(torch.maximum(self.largest_priority, largest))
        self.priorities.update(slots, priorities, keep)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that sampling and `update` read or write, by name."""
        own = {name: getattr(self, name) for name in self.TENSORS}
        return own | {f"priorities.{name}": getattr(self.priorities, name) for name in self.priorities.TENSORS}

    @staticmethod
    def share(replays: Sequence[Replay]) -> dict[str, Tensor]:
        """Move everything of several replays of one shape into rows of common tensors, and return these: [S, ...]."""
        common: dict[str, Tensor] = {}
        for name, tensor in replays[0].tensors().items():
            if name in Replay.CONSTANT:
                common[name] = tensor
                continue
            # torch.empty does not touch the memory, so it is taken as the rings fill.
            common[name] = torch.empty((len(replays), *tensor.shape), dtype=tensor.dtype, device=tensor.device)
            for row, replay in zip(common[name], replays, strict=True):
                if name == "frames" and not replay.counts.any():
                    row[replay.zero_slot] = 0
                else:
                    row.copy_(replay.tensors()[name])
                replay._set(name, row)
        return common

    def over(self, tensors: Mapping[str, Tensor]) -> Replay:
        """This replay with other tensors in the place of `tensors()`, for `sample_at`, `gather` and `update` alone."""
        replay = copy.copy(self)
        replay.priorities = copy.copy(self.priorities)
        replay.size = 1  # the division by the largest weight cancels it
        for name, tensor in tensors.items():
            replay._set(name, tensor)
        return replay

    def _set(self, name: str, tensor: Tensor) -> None:
        owner = self.priorities if name.startswith("priorities.") else self
        setattr(owner, name.removeprefix("priorities."), tensor)

    def adopt(self, other: Replay) -> None:
        """Hold what `other`, a replay of the same shape, holds: in this one's memory, which compiled updates read."""
        for tensor, theirs in zip(self.tensors().values(), other.tensors().values(), strict=True):
            tensor.copy_(theirs)
        self.counts[:], self.ages[:], self.valid[:] = other.counts, other.ages, other.valid
        self.size = other.size
        self.generator.set_state(other.generator.get_state())

    def state_dict(self) -> dict[str, Tensor]:
        """All but the slots, which `records` gives."""
        return {
            "counts": torch.from_numpy(self.counts.copy()),
            "ages": torch.from_numpy(self.ages.copy()),
            "valid": torch.from_numpy(self.valid.copy()),
            "largest_priority": self.largest_priority.clone(),
            "generator": self.generator.get_state(),
            **{f"priorities.{name}": tensor for name, tensor in self.priorities.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Into a new replay of the same shape, before `load_records`. Raises ValueError where the shape differs."""
        if len(state["counts"]) != len(self.counts) or len(state["valid"]) != len(self.valid):
            raise ValueError(
                f"the saved replay has {len(state['counts'])} environments and {len(state['valid'])} slots, this one "
                f"{len(self.counts)} and {len(self.valid)}: capacity, environments, stack and n_steps must be the same"
            )
        self.counts[:] = state["counts"].numpy()
        self.ages[:] = state["ages"].numpy()
        self.valid[:] = state["valid"].numpy()
        self.size = int(self.valid.sum())
        self.largest_priority.copy_(state["largest_priority"])
        self.generator.set_state(state["generator"])
        self.priorities.load_state_dict(
            {n.removeprefix("priorities."): t for n, t in state.items() if "priorities." in n}
        )

    def oldest(self) -> Indices:
        """[N] int64: for each column the oldest serial that a sample can still read."""
        return np.maximum(self.counts - self.window - (self.stack - 1), 0)

    @property
    def record(self) -> np.dtype[np.void]:
        """The dtype of one stored slot."""
        return record_dtype(tuple(self.frames.shape[1:]), torch.empty(0, dtype=self.frames.dtype).numpy().dtype)

    def records(self, envs: Indices, serials: Indices) -> npt.NDArray[np.void]:
        """[K] of `record`: the contents of slots (envs [K], serials [K])."""
        slots = self._slots(envs, serials)
        records = np.empty(len(envs), dtype=self.record)
        records["env"], records["serial"] = envs, serials
        records["frame"] = self.frames.index_select(0, slots).cpu().numpy()
        records["action"] = self.actions[slots].cpu().numpy()
        records["reward"] = self.rewards[slots].cpu().numpy()
        records["discount"] = self.discounts[slots].cpu().numpy()
        records["first"] = self.first[slots].cpu().numpy()
        return records

    def load_records(self, records: npt.NDArray[np.void]) -> None:
        """Write `records` back into their slots, but for those that no sample can read any more."""
        records = records[records["serial"] >= self.oldest()[records["env"]]]
        envs, serials = records["env"].astype(np.int64), records["serial"].astype(np.int64)
        slots = self._slots(envs, serials)
        self.frames.index_copy_(0, slots, torch.from_numpy(records["frame"].copy()).to(self.device))
        self.actions[slots] = torch.from_numpy(records["action"].copy()).to(self.device)
        self.rewards[slots] = torch.from_numpy(records["reward"].copy()).to(self.device)
        self.discounts[slots] = torch.from_numpy(records["discount"].copy()).to(self.device)
        self.first[slots] = torch.from_numpy(records["first"].copy()).to(self.device)
        self.serials[slots] = torch.from_numpy(serials).to(self.device)

    def clear(self) -> None:
        """Forget every transition; the memory stays."""
        self.priorities.clear()
        self.valid[:] = False
        self.size = 0
        self.ages[:] = -1

    def _advance(self, envs: Indices, frames: Array, first: npt.NDArray[np.bool_]) -> Indices:
        """Write frames into the next slot of each column and return those slots."""
        serials = self.counts[envs]
        slots = self._flat(envs, serials)
        put(self.frames, slots, frames)
        put(self.first, slots, first)
        put(self.serials, slots, serials)
        self.ages[envs] = np.where(first, 0, self.ages[envs] + 1)
        self.counts[envs] += 1
        return slots

    def _open_and_retire(self, envs: Indices, starts: list[tuple[Indices, Indices]]) -> None:
        """Make `starts`, (envs, serials), sampleable, and retire slots a whole window older than the newest."""
        oldest = self.counts[envs] - 1 - self.window
        retired = self._flat(envs, oldest)[oldest >= 0]
        opened = np.concatenate([self._flat(*start) for start in starts])
        self.size += len(opened) - int(self.valid[retired].sum())
        self.valid[retired] = False
        self.valid[opened] = True
        slots = np.concatenate([opened, retired])
        self.priorities.write(slots, self.largest_priority, np.arange(len(slots)) < len(opened))

    def _flat(self, envs: Indices, serials: Indices) -> Indices:
        flat: Indices = envs * self.length + serials % self.length
        return flat

    def _slots(self, envs: Indices, serials: Indices) -> Tensor:
        return torch.from_numpy(self._flat(envs, serials)).to(self.device)


def record_dtype(frame_shape: tuple[int, ...], frame_dtype: npt.DTypeLike) -> np.dtype[np.void]:
    """The dtype of one stored slot, which never changes once the next slot is written."""
    return np.dtype(
        [
            ("env", "<i4"),
            ("serial", "<i8"),
            ("frame", frame_dtype, frame_shape),
            ("action", "<i8"),
            ("reward", "<f4"),
            ("discount", "<f4"),
            ("first", "?"),
        ]
    )
