"""Hydra's and OmegaConf's messages, which run over many lines, as one sentence with what was probably meant."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# What other libraries call our settings. A name is suggested only where it exists.
SYNONYMS = {
    "alpha": "priority_exponent",
    "beta": "importance_exponent",
    "buffer_size": "capacity",
    "clip_norm": "max_grad_norm",
    "epochs": "frames",
    "eps": "adam_eps",
    "exploration": "epsilon",
    "gamma": "discount",
    "grad_clip": "max_grad_norm",
    "learning_starts": "min_replay_steps",
    "lr": "learning_rate",
    "multi_step": "n_steps",
    "n_envs": "num_envs",
    "network": "torso",
    "rom": "game",
    "target_update_interval": "target_every_updates",
    "timesteps": "frames",
    "total_timesteps": "frames",
    "train_freq": "update_every_steps",
    "width": "hidden",
}


class Composition(Protocol):
    """The configuration that was to be composed."""

    @property
    def overrides(self) -> list[str]: ...
    def keys(self, without: str) -> list[str]: ...
    def options(self, group: str) -> list[str]: ...
    def groups(self) -> list[str]: ...
    def keys_of_option(self, group: str, option: str) -> list[str]: ...


def key_of(override: str) -> str:
    """The key that an override sets, adds or deletes."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def quoted(value: str) -> str:
    """A text as Hydra's grammar takes any text."""
    return "'" + value.replace("\\", "\\\\").replace("'", r"\'") + "'" if "'" in value else f"'{value}'"


def unreadable(override: str) -> str:
    """For what Hydra's grammar does not read: how to write it."""
    key, given, value = override.partition("=")
    if not given:
        return f"'{override}' is no setting: write key=value"
    working = f"{key}={quoted(value)}"
    try:
        OverridesParser.create().parse_override(working)
    except HydraException:
        return f"'{override}' is no setting: write key=value, the key with letters, digits, dots and underscores"
    in_shell = shlex.quote(working) if re.search(r'["$`\\!]', working) else f'"{working}"'
    return f"{override} cannot be read as it is: put quotes around the value, {in_shell}"


def of_error(error: Exception, composition: Composition) -> str:
    """The sentence for an error of Hydra or OmegaConf."""
    text = " ".join(str(part) for part in (error, error.__cause__) if part)
    key = re.search(r"full_key: (\S+)", text)
    where = key[1] if key else "a key"
    if option := re.search(r"Could not find '([^']*)'.*?Available options in '([^']*)':(.*?)\nConfig", text, re.S):
        return _no_such_option(option[2], option[1].removeprefix(f"{option[2]}/"), composition)
    if group := _value_in_place_of_an_option(text, composition):
        return group
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text):
        return no_such_key(unknown[1] or unknown[2], composition)
    if invalid := re.search(r"Invalid value '(.*?)', expected one of (\[.*?\])", text):
        return f"{where}={invalid[1]} is none of {invalid[2]}"
    if flag := re.search(r"Value '(.*?)' is not a valid bool", text):
        return f"{where}={flag[1]} is not true or false"
    if value := re.search(r"Value '(.*?)'.*? could not be converted to (\w+)", text):
        kind = {"Integer": "a whole number", "Float": "a number"}.get(value[2], value[2])
        return f"{where}={value[1]} is not {kind}"
    if "is not Optional" in text:
        return f"{where}=null, but it needs a value"
    return " ".join(text.split())


def no_such_key(name: str, composition: Composition) -> str:
    """For a key that does not exist: where it exists, or the nearest one."""
    keys = composition.keys(name)
    elsewhere = [
        f"{group}={option}"
        for group in composition.groups()
        if name.startswith(group.replace("/", ".") + ".")
        for option in composition.options(group)
        if name in composition.keys_of_option(group, option)
    ]
    if elsewhere:
        return f"there is no key '{name}' here: {', '.join(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} it"
    near = _meant(name, keys)
    return f"there is no key '{name}'" + (f": did you mean '{near}'?" if near else "")


def _meant(name: str, keys: list[str]) -> str | None:
    section, _, last = name.rpartition(".")
    for wanted in (last, SYNONYMS.get(last.lower(), last)):
        if same := [key for key in keys if key.rsplit(".", 1)[-1] == wanted]:
            return max(same, key=lambda key: key.startswith(f"{section}."))
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    if not near:
        by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
        near = [by_last[n] for n in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
    return near[0] if near else None


def _no_such_option(group: str, name: str, composition: Composition) -> str:
    options = composition.options(group)
    sentence = f"{group}={name} does not exist: the options are {', '.join(options)}"
    if meant := _meant_option(group, name, options, composition):
        return f"{sentence}: did you mean {meant}?"
    return sentence


def _meant_option(group: str, name: str, options: list[str], composition: Composition) -> str | None:
    if near := difflib.get_close_matches(name, options, n=1, cutoff=0.6):
        return f"{group}={near[0]}"
    if (game := _game(name)) is not None:
        return f"env=atari env.game={game}"
    others = [other for other in composition.groups() if other != group and name in composition.options(other)]
    return f"{others[0]}={name}" if others else None


def _game(name: str) -> str | None:
    from nap_rl.envs.games import check_game

    try:
        return check_game(name)
    except ValueError as error:
        near = re.search(r"did you mean '(\w+)'", str(error))
        return near[1] if near else None


def _value_in_place_of_an_option(text: str, composition: Composition) -> str | None:
    """For `nap=true`, where nap is a group of files: the key that takes such a value."""
    if "Config group override" not in text:
        return None
    for override in composition.overrides:
        name, _, value = override.partition("=")
        options = composition.options(name)
        if not options or value in options:
            continue
        sentence = f"{override}: {name} is a group of settings with the options {', '.join(options)}"
        keys = [key for key in composition.keys(name) if key != name and key.rsplit(".", 1)[-1] == name]
        return f"{sentence}: did you mean {keys[0]}={value}?" if keys else sentence
    return None
