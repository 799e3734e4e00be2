"""What our measurements say of a configuration that is allowed, in sentences for the start of a run."""

from __future__ import annotations

from nap_rl.conf.env_schema import SequenceConfig, SequentialConfig
from nap_rl.conf.schedule_schema import ConstantSchedule
from nap_rl.conf.schema import Affine, Config
from nap_rl.conf.updates import updates_of


def advice(config: Config) -> list[str]:
    """Sentences; none for most configurations."""
    return _of_methods(config) + (_of_projection(config) if config.agent.nap and config.nap.project else [])


def _of_methods(config: Config) -> list[str]:
    name, every, updates = config.plasticity.name, getattr(config.plasticity, "every", None), updates_of(config)
    if every is None or every <= updates:
        return []
    return [f"plasticity={name} will not act: plasticity.every={every}, and this run has {updates} updates"]


def _of_projection(config: Config) -> list[str]:
    sequence = isinstance(config.env, (SequenceConfig, SequentialConfig))
    found = []
    if isinstance(config.schedule, ConstantSchedule) and not sequence:
        found.append(
            "with projection a constant learning rate stays constant in effect: on one task schedule=linear did better "
            "(docs/results.md, figure 4)"
        )
    if sequence and config.nap.affine in (Affine.project, Affine.free):
        found.append(
            f"nap.affine={config.nap.affine.name}: in long sequences offsets sink and units die; "
            "nap.affine=regularize and nap.affine=omit held (docs/guides/nap.md)"
        )
    return found
