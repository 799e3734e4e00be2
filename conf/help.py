"""The second half of `train.py --help`: groups of settings, and the settings of the root file with their comments."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

GROUPS = (
    ("agent", "the algorithm"),
    ("agent/head", "what the network's outputs mean"),
    ("env", "one game, or several in turn"),
    ("env/protocol", "how a game is played"),
    ("nap", "what Normalize-and-Project does, with agent.nap=true"),
    ("plasticity", "another method against the loss of plasticity"),
    ("optimizer", "what steps the weights; custom: any class by its dotted path"),
    ("schedule", "the learning rate"),
    ("experiment", "presets: values of published settings, and small ones to try"),
)


def groups_and_settings() -> str:
    """Lines for people: each group with its options, then the root settings."""
    conf = files("nap_rl.conf")
    lines = ["Groups of settings, chosen with group=option:"]
    for group, meaning in GROUPS:
        lines.append(f"    {group:<14} {', '.join(_options(conf.joinpath(group)))}")
        lines.append(f"    {'':<14} {meaning}")
    lines += [
        "",
        "Single settings, with their defaults; those of a group stand in conf/<group>/<option>.yaml and are set as",
        "group.key=value, such as agent.learning_rate=1e-4 or env.game=breakout:",
        "",
    ]
    text = conf.joinpath("config.yaml").read_text(encoding="utf-8")
    lines += [f"    {line}" for line in text[text.index("\nname:") + 1 : text.index("\nhydra:")].splitlines()]
    lines += ["", "A value with spaces, commas, = or other signs takes quotes inside quotes: \"name='a b'\"."]
    return "\n".join(lines)


def _options(folder: Traversable) -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
