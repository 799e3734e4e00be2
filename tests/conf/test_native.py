"""native=auto|on|off: who gets native code, and that nothing needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nap_rl import cli
from nap_rl.agents import ValueAgent
from nap_rl.agents.whole_update import WholeUpdate
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config, Native

native = pytest.importorskip("nap_rl.native")
SMALL = ["agent.torso=data_efficient", "agent.hidden=8", "replay.capacity=2000", "agent.min_replay_steps=1000"]


def config(*overrides: str) -> Config:
    schema.register()
    cli.register_resolvers()
    return to_config(cli.compose("config", [*SMALL, *overrides]))


@pytest.mark.skipif(native.library() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("setting", "compile", "accelerated"),
    [("auto", "on", True), ("auto", "off", False), ("on", "off", True), ("off", "on", False)],
)
def test_auto_is_for_compiled_runs_on_and_off_for_any(setting: str, compile: str, accelerated: bool) -> None:
    asked = config(f"native={setting}", f"compile={compile}", "agent.nap=true", "agent.hidden=512")
    agent, _ = build.build_agent(asked, 4, torch.device("cpu"))
    assert (type(agent) is not ValueAgent) is accelerated


def test_a_small_network_learns_by_one_compiled_function_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)  # operator by operator
    agent, _ = build.build_agent(config("native=auto", "compile=on", "agent.nap=true"), 4, torch.device("cpu"))
    assert type(agent) is ValueAgent and isinstance(agent.gradient_step, WholeUpdate)


def test_on_for_a_learner_on_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="native=on, but the learner is on cuda"):
        build.native_wanted(config("native=on"), True, torch.device("cuda"))


def test_a_configuration_stored_without_the_setting_has_auto() -> None:
    stored = schema.to_dict(config("native=off"))
    del stored["native"]
    assert schema.from_dict(stored).native is Native.auto


def test_without_the_package_everything_else_is_there() -> None:
    code = """
import sys
sys.modules["nap_rl.native"] = None  # importing it is an ImportError
import torch
from nap_rl import cli
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
schema.register(), cli.register_resolvers()
config = to_config(cli.compose("config", sys.argv[1:]))
print(type(build.build_agent(config, 4, torch.device("cpu"))[0]).__name__)
"""
    command = [sys.executable, "-c", code, *SMALL, "native=off", "compile=off"]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()[-1] == "ValueAgent"
