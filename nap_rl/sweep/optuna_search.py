"""A search that learns from its runs: Optuna's TPE (Bergstra et al. 2011), asked for a few draws at a time.

Each draw runs with every seed; its score is the mean over the seeds. The draws and their scores stand in the runs'
folders, so a search that was killed asks on from what they say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from nap_rl.cli import key_of
from nap_rl.sweep.grammar import Axis, Combination, values_of
from nap_rl.sweep.search import DIGITS, SEED, interval_of


def is_installed() -> bool:
    """Whether Optuna is."""
    return find_spec("optuna") is not None


class OptunaSearch:
    """Draws for the settings among `overrides` that have several values; more of the score is better.

    Raises:
        ValueError: an override that cannot be read, or nothing to draw from.
    """

    def __init__(self, overrides: Sequence[str], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._overrides = optuna, list(overrides)
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._distributions: dict[str, Any] = {}
        self._seeds: list[Axis] = []
        for text in overrides:
            if (found := interval_of(text)) is not None:
                key, low, high, logarithmic = found
                self._distributions[key] = optuna.distributions.FloatDistribution(low, high, log=logarithmic)
            elif key_of(text) == SEED:
                self._seeds.append(values_of(text))
            elif (axis := values_of(text)).several:
                self._distributions[key_of(text)] = optuna.distributions.CategoricalDistribution(axis.overrides)
        if not self._distributions:
            raise ValueError("sweep.search=optuna has nothing to draw from: give a setting several values")

    def ask(self, draws: int) -> list[Combination]:
        """The runs of as many new draws, each with every seed."""
        found = []
        for _ in range(draws):
            params = self._study.ask(self._distributions).params
            drawn = [self._written(text, params) for text in self._overrides if key_of(text) != SEED]
            differing = [text for text in drawn if key_of(text) in self._distributions]
            for seeds in itertools.product(*(axis.overrides for axis in self._seeds)):
                several = [text for text, axis in zip(seeds, self._seeds, strict=True) if axis.several]
                found.append(Combination((*drawn, *seeds), (*differing, *several)))
        return found

    def tell(self, overrides: Sequence[str], score: float) -> None:
        """The score of a draw, by the settings that it ran with."""
        by_key = {key_of(text): text for text in overrides}
        params = {}
        for key, distribution in self._distributions.items():
            number = isinstance(distribution, self._optuna.distributions.FloatDistribution)
            params[key] = float(by_key[key].partition("=")[2]) if number else by_key[key]
        trial = self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=score)
        self._study.add_trial(trial)

    def _written(self, text: str, params: dict[str, Any]) -> str:
        key = key_of(text)
        if key not in params:
            return values_of(text).overrides[0]
        value = params[key]
        if isinstance(value, float):
            low, high = self._distributions[key].low, self._distributions[key].high
            return f"{key}={min(max(float(format(value, f'.{DIGITS}g')), low), high):.{DIGITS}g}"
        return str(value)
