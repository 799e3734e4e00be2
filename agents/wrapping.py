"""torch.compile and CUDA graphs, put around the functions of an agent from outside."""

from __future__ import annotations

from nap_rl.agents.captured import Captured
from nap_rl.agents.value_agent import ValueAgent
from nap_rl.compilation import compiled_method


def compile_agent(agent: ValueAgent) -> ValueAgent:
    """torch.compile `losses` and, on a CPU, `q_values`. Returns `agent`."""
    agent.compiled, on_cpu = True, agent.device.type == "cpu"
    agent.losses = compiled_method(agent.losses, on_cpu)  # type: ignore[method-assign]
    if on_cpu:
        agent.q_values = compiled_method(agent.q_values, on_cpu)  # type: ignore[method-assign]
    return agent


def capture_agent(agent: ValueAgent) -> ValueAgent:
    """Record `gradient_step` and `q_values` as CUDA graphs, after `compile_agent` if both are wanted. Returns `agent`.

    Needs the replay on the same GPU, a `capturable` optimiser with a tensor as learning rate, no plasticity method, and
    projection at every update or none.
    """
    step = Captured(agent.gradient_step, agent.device, [agent.generator, agent.replay.generator])
    agent.gradient_step, agent.on_new_state = step, step.forget  # type: ignore[assignment]
    agent.q_values = Captured(agent.q_values, agent.device)  # type: ignore[assignment]
    return agent
