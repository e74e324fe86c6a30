"""The reference machines that are swept for crashes: each uses other parts of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flat
from flat import AgentFailed, AgentRequest, HooksRegistry, Machine, MachineHooks
from flat.drivers.clock import Clock
from flat.testing.agents import After, ScriptedAgent
from flat.testing.crash import Scenario

BIG = "0123456789abcdef" * 1100  # more than one blob's worth of text


class Actions(MachineHooks):
    """Actions by name; whatever they do depends on the context alone."""

    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        getattr(self, action_name)(context)
        return context

    def count(self, context: dict[str, Any]) -> None:
        context["n"] += 1

    def remember(self, context: dict[str, Any]) -> None:
        context["n"] += 1
        context["history"].append({"number": context["n"], "text": "x" * 100})

    def inflate(self, context: dict[str, Any]) -> None:
        context["n"] += 1
        context["pages"].append(f"{context['n']}{BIG}")
        context["page"] = f"{BIG}{context['n'] % 2}"

    def shuffle(self, context: dict[str, Any]) -> None:
        context["n"] += 1
        context.pop(f"key{context['n'] - 2}", None)
        context[f"key{context['n']}"] = {"deep": {"list": [context["n"]]}}
        context["tree"]["leaf"]["count"] = context["n"]
        context["seen"].add(context["n"])
        if context["n"] % 2:
            context["history"].clear()
        context["history"].append(context["n"])

    def burst(self, context: dict[str, Any]) -> None:
        raise {1: KeyError, 2: ValueError, 3: OSError}[context["n"]]("burst")


class Steering(Actions):
    """Steers at every point."""

    def on_machine_start(self, context: dict[str, Any]) -> dict[str, Any]:
        context["trace"] = ["start"]
        return context

    def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
        return {**final_output, "trace": [*context["trace"], "end"]}

    async def on_state_enter(self, state_name: str, context: dict[str, Any]) -> dict[str, Any]:
        context["trace"].append(f"enter {state_name}")
        return context

    def on_state_exit(self, state_name: str, context: dict[str, Any], output: Any) -> Any:
        context["trace"].append(f"exit {state_name}")
        return output

    async def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> str:
        context["trace"].append(f"{from_state}>{to_state}")
        return "detour" if to_state == "skipped" else to_state

    def on_error(self, state_name: str, error: Exception, context: dict[str, Any]) -> str | None:
        context["trace"].append(f"error {type(error).__name__}")
        return "end" if isinstance(error, Exception) else None


def config(states: Mapping[str, Any], context: Mapping[str, Any], **data: Any) -> dict[str, Any]:
    """A machine file as a mapping."""
    whole = {"name": "reference", "context": dict(context), "states": dict(states), **data}
    return {"spec": "flatmachine", "spec_version": "2.5.0", "data": whole}


def agent_config() -> dict[str, Any]:
    """An agent that is never asked: a scripted one takes its place."""
    data = {"name": "helper", "model": {"provider": "x", "name": "y"}, "system": "s", "user": "u"}
    return {"spec": "flatagent", "spec_version": "2.5.0", "data": data}


def scenario(
    states: Mapping[str, Any], context: Mapping[str, Any], hooks: Callable[[], Any] | None = Actions, *,
    agent: Callable[[Clock], ScriptedAgent] | None = None, signals: Mapping[str, Any] | None = None,
    more_steps: int | None = None, max_steps: int | None = None,
) -> Scenario:  # fmt: skip
    """A scenario around a few states."""
    data: dict[str, Any] = {"hooks": "hooks"} if hooks is not None else {}
    if agent is not None:
        data["agents"] = {"helper": agent_config()}
    whole = config(states, context, **data)

    def machine(clock: Clock) -> Machine:
        registry = HooksRegistry({"hooks": hooks} if hooks is not None else {})
        agents = {"helper": agent(clock)} if agent is not None else {}
        return flat.load(config=whole, hooks=registry, agents=agents)

    return Scenario(machine=machine, signals=signals or {}, more_steps=more_steps, max_steps=max_steps)


def attempt(request: AgentRequest) -> int:
    """Which attempt of its visit a call is, as its key tells."""
    tail = request.idempotency_key.rpartition(".")[2]
    return int(tail) if tail.isdigit() else 0


def flaky(request: AgentRequest) -> Any:
    """Fails, then is empty, then answers."""
    return [AgentFailed("busy", code="rate_limit", retryable=True, retry_after=3.0), "", "ok"][
        attempt(request)
    ]


def loop(action: str, times: int) -> dict[str, Any]:
    return {
        "start": {"type": "initial", "transitions": [{"to": "work"}]},
        "work": {
            "action": action,
            "transitions": [{"condition": f"context.n >= {times}", "to": "end"}, {"to": "work"}],
        },
        "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
    }


def counter() -> Scenario:
    return scenario(loop("count", 5), {"n": 0})


def retries() -> Scenario:
    states = {
        "start": {"type": "initial", "transitions": [{"to": "ask"}]},
        "ask": {
            "agent": "helper",
            "execution": {"type": "retry", "backoffs": [1, 2, 4], "jitter": 0.1, "retry_on_empty": True},
            "input": {"q": "{{ context.n }}"},
            "output_to_context": {"answer": "{{ output.content }}"},
            "transitions": [{"to": "count"}],
        },
        "count": {
            "action": "count",
            "transitions": [{"condition": "context.n >= 2", "to": "end"}, {"to": "ask"}],
        },
        "end": {"type": "final", "output": {"answer": "{{ context.answer }}"}},
    }
    return scenario(states, {"n": 0, "answer": None}, agent=lambda clock: ScriptedAgent(flaky, clock=clock))


def errors() -> Scenario:
    states = {
        "start": {"type": "initial", "transitions": [{"to": "count"}]},
        "count": {"action": "count", "transitions": [{"to": "burst"}]},
        "burst": {
            "action": "burst",
            "on_error": {"KeyError": "count", "ValueError": "again", "default": "end"},
            "transitions": [{"to": "end"}],
        },
        "again": {"action": "count", "transitions": [{"to": "burst"}]},
        "end": {"type": "final", "output": {"kind": "{{ context.last_error_type }}"}},
    }
    return scenario(states, {"n": 0})


def steered() -> Scenario:
    states = {
        "start": {"type": "initial", "transitions": [{"to": "count"}]},
        "count": {"action": "count", "transitions": [{"to": "skipped"}]},
        "skipped": {"action": "count", "transitions": [{"to": "end"}]},
        "detour": {"action": "burst", "transitions": [{"to": "skipped"}]},
        "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
    }
    return scenario(states, {"n": 0}, Steering)


def signals() -> Scenario:
    states = {
        "start": {"type": "initial", "transitions": [{"to": "first"}]},
        "first": {
            "wait_for": "approval/{{ context.n }}",
            "output_to_context": {"who": "{{ output.who }}"},
            "transitions": [{"to": "count"}],
        },
        "count": {"action": "count", "transitions": [{"to": "second"}]},
        "second": {
            "wait_for": "approval/{{ context.n }}",
            "output_to_context": {"then": "{{ output.value }}"},
            "transitions": [{"to": "third"}],
        },
        "third": {"wait_for": "last", "transitions": [{"to": "end"}]},
        "end": {"type": "final", "output": {"who": "{{ context.who }}", "then": "{{ context.then }}"}},
    }
    sent = {"approval/0": {"who": "Ann", "$odd": 2**70}, "approval/1": "yes", "last": None}
    return scenario(states, {"n": 0}, signals=sent)


def timeouts() -> Scenario:
    def agent(clock: Clock) -> ScriptedAgent:
        return ScriptedAgent(
            lambda request: After(100, "late") if request.input["n"] == "0" else "soon", clock=clock
        )

    states = {
        "start": {"type": "initial", "transitions": [{"to": "ask"}]},
        "ask": {
            "agent": "helper", "timeout": 5, "input": {"n": "{{ context.n }}"},
            "on_error": {"TimeoutError": "count"}, "transitions": [{"to": "end"}],
        },
        "count": {"action": "count", "transitions": [{"to": "ask"}]},
        "end": {"type": "final", "output": {"error": "{{ context.last_error }}"}},
    }  # fmt: skip
    return scenario(states, {"n": 0}, agent=agent)


def limited() -> Scenario:
    return scenario(loop("count", 6), {"n": 0}, max_steps=4, more_steps=50)


def history() -> Scenario:
    return scenario(loop("remember", 8), {"n": 0, "history": []})


def blobs() -> Scenario:
    return scenario(loop("inflate", 4), {"n": 0, "pages": [], "page": None})


def shuffled() -> Scenario:
    def hooks() -> Actions:
        return Shuffling()

    return scenario(loop("shuffle", 6), {"n": 0, "tree": {"leaf": {}}, "history": [], "key0": 1}, hooks)


class Shuffling(Actions):
    def on_machine_start(self, context: dict[str, Any]) -> dict[str, Any]:
        context["seen"] = set()
        return context


SCENARIOS: Mapping[str, Scenario] = {
    make.__name__: make()
    for make in (
        counter, retries, errors, steered, signals, timeouts, limited, history, blobs, shuffled,
    )
}  # fmt: skip
