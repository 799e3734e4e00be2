"""The command line of the entry points: settings composed by Hydra, and one clear sentence for what cannot run."""

from nap_rl.cli.arguments import Arguments, parse
from nap_rl.cli.compose import COMPOSE_ERRORS, CONF, compose, group_options, register_resolvers
from nap_rl.cli.run import INTERRUPTED, USAGE_ERROR, check_folder, inspect, main, refusing_bad_input, run, start
from nap_rl.cli.sentences import key_of, quoted

__all__ = [
    "COMPOSE_ERRORS",
    "CONF",
    "INTERRUPTED",
    "USAGE_ERROR",
    "Arguments",
    "check_folder",
    "compose",
    "group_options",
    "inspect",
    "key_of",
    "main",
    "parse",
    "quoted",
    "refusing_bad_input",
    "register_resolvers",
    "run",
    "start",
]
