"""Environments: real Atari games, one at a time or in sequence."""

from nap_rl.envs.atari import AtariEnvs, EmulatorError, Protocol, Resize
from nap_rl.envs.games import check_game, check_games
from nap_rl.envs.sequential import SequentialAtari
from nap_rl.envs.step import Episode, Step, TaskStream, VectorEnv, Visit

__all__ = [
    "AtariEnvs",
    "EmulatorError",
    "Episode",
    "Protocol",
    "Resize",
    "SequentialAtari",
    "Step",
    "TaskStream",
    "VectorEnv",
    "Visit",
    "check_game",
    "check_games",
]
