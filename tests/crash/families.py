"""Reference machines of more than one execution, and with more than one call to an agent, for the crash sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from crash_machines import Actions, agent_config, config

import flat
from flat import AgentRequest, HooksRegistry, Machine, MachineHooks
from flat.agents.protocol import AgentResult, Usage
from flat.drivers.clock import Clock
from flat.testing.agents import After, ScriptedAgent
from flat.testing.crash import Scenario


def to(target: str) -> list[dict[str, str]]:
    return [{"to": target}]


def number(request: AgentRequest) -> str:
    """What follows the last point of a call's key: which one of its visit it is."""
    return request.idempotency_key.rpartition(".")[2]


class Steps(Actions):
    """Actions, and tools by the state's name."""

    def fail(self, context: dict[str, Any]) -> None:
        raise LookupError("nothing there")

    def get_tool_provider(self, state_name: str) -> Any:
        return Tools()


class Tools:
    """Tools whose answers depend on what they are asked alone."""

    def get_tool_definitions(self) -> list[dict[str, Any]]:
        return [{"type": "function", "function": {"name": "look", "parameters": {}}}]

    def execute_tool(self, name: str, tool_call_id: str, arguments: Any) -> str:
        if name == "break":
            raise OSError("broken")
        return f"{tool_call_id}: {json.dumps(arguments)} {'x' * 200}"


class Watching(Steps):
    """Hooks on every point of a machine, its states and its tool loops."""

    def on_machine_start(self, context: dict[str, Any]) -> dict[str, Any]:
        return {**context, "trace": ["start"]}

    def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
        return {**final_output, "trace": context["trace"]}

    def on_state_enter(self, state_name: str, context: dict[str, Any]) -> dict[str, Any]:
        context["trace"].append(state_name)
        return context

    def on_state_exit(self, state_name: str, context: dict[str, Any], output: Any) -> Any:
        context["trace"].append(f"/{state_name}")
        return output

    def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> str:
        context["trace"].append(">")
        return to_state

    def on_tool_calls(self, state_name: str, tool_calls: Any, context: dict[str, Any]) -> dict[str, Any]:
        context["trace"].append(len(tool_calls))
        context["_skip_tools"] = ["skip"]
        return context

    def on_tool_result(self, state_name: str, tool_result: Any, context: dict[str, Any]) -> dict[str, Any]:
        context["trace"].append(tool_result["name"])
        if tool_result["is_error"]:
            context["_steering_messages"] = "mind the gap"
        return context


def family(
    states: Mapping[str, Any], machines: Mapping[str, Any], hooks: Callable[[], MachineHooks] = Steps, *,
    answer: Callable[[AgentRequest], Any] = lambda request: f"answer {number(request)}",
    context: Mapping[str, Any] | None = None, signals: Mapping[str, Any] | None = None, **rest: Any,
) -> Scenario:  # fmt: skip
    data = {"machines": dict(machines)} if machines else {}
    whole = config(
        {**states, "end": {"type": "final", "output": {"got": "context.got"}}},
        {"got": None, "n": 0, **(context or {})}, hooks="hooks", agents={"helper": agent_config()},
        settings={"native_types": True, **rest.pop("settings", {})}, **data,
    )  # fmt: skip

    def machine(clock: Clock) -> Machine:
        registry = HooksRegistry({"hooks": hooks})
        return flat.load(
            config=whole,
            hooks=registry,
            agents={"helper": ScriptedAgent(answer, clock=clock)},
            tool_provider=Tools(),
        )

    return Scenario(machine=machine, signals=signals or {}, unordered=bool(machines), **rest)


def child(states: Mapping[str, Any], **data: Any) -> dict[str, Any]:
    context = {"v": "{{ input.v | default(0) }}", "n": 0, "got": None}
    end = {"end": {"type": "final", "output": {"v": "context.v", "n": "context.n", "got": "context.got"}}}
    own = {"hooks": "hooks", "settings": {"native_types": True}, "agents": {"helper": agent_config()}}
    return config({**states, **end}, context, **own, **data)


COUNT = child(
    {"s": {"action": "count", "transitions": to("t")}, "t": {"action": "count", "transitions": to("end")}}
)
ASK = child(
    {"s": {"agent": "helper", "output_to_context": {"got": "output.content"}, "transitions": to("end")}}
)
WAIT = child(
    {
        "s": {
            "wait_for": "go/{{ context.v }}",
            "output_to_context": {"got": "output"},
            "transitions": to("end"),
        }
    }
)
FAIL = child(
    {"s": {"action": "count", "transitions": to("t")}, "t": {"action": "fail", "transitions": to("end")}}
)
NEST = child(
    {"s": {"foreach": "{{ [1, 2] }}", "machine": "count", "input": {"v": "{{ item }}"},
           "output_to_context": {"got": "output"}, "transitions": to("end")}},
    machines={"count": COUNT},
)  # fmt: skip
LAUNCH = child(
    {"s": {"launch": "count", "launch_input": {"v": 7}, "transitions": to("end")}}, machines={"count": COUNT}
)
KEEP = {"output_to_context": {"got": "output"}, "transitions": to("end")}


def one() -> Scenario:
    return family({"s": {"machine": "c", "input": {"v": 3}, **KEEP}}, {"c": COUNT})


def caught() -> Scenario:
    states = {
        "s": {"machine": "c", "on_error": {"LookupError": "after"}, **KEEP},
        "after": {"action": "count", "transitions": to("end")},
    }
    return family(states, {"c": FAIL})


def listed() -> Scenario:
    entries = [{"name": "count", "input": {"v": 5}}, {"name": "fail"}, {"name": "ask"}]
    return family(
        {"s": {"machine": entries, "input": {"v": 1}, **KEEP}}, {"count": COUNT, "fail": FAIL, "ask": ASK}
    )


def each() -> Scenario:
    state = {
        "foreach": "context.items",
        "as": "it",
        "key": "k{{ it }}",
        "machine": "ask",
        "input": {"v": "{{ it }}"},
    }
    return family(
        {"s": {**state, **KEEP}},
        {"ask": ASK},
        context={"items": [1, 2, 3, 4]},
        settings={"max_concurrency": 2},
    )


def first() -> Scenario:
    state = {"machine": ["wait", "count"], "mode": "any", "input": {"v": 1}}
    return family({"s": {**state, **KEEP}}, {"wait": WAIT, "count": COUNT})


def waiting() -> Scenario:
    states = {"s": {"machine": ["wait", "count"], "input": {"v": 1}, **KEEP, "transitions": to("t")},
              "t": {"action": "count", "transitions": to("end")}}  # fmt: skip
    return family(states, {"wait": WAIT, "count": COUNT}, signals={"go/1": {"who": "Ann"}})


def late() -> Scenario:
    states = {
        "s": {"machine": "ask", "timeout": 5, "on_error": {"TimeoutError": "t"}, **KEEP},
        "t": {"action": "count", "transitions": to("end")},
    }
    return family(states, {"ask": ASK}, answer=lambda request: After(100, "late"))


def launches() -> Scenario:
    states = {
        "s": {"launch": ["count", "ask"], "launch_input": {"v": 1}, "transitions": to("t")},
        "t": {"action": "count", "transitions": to("end")},
    }
    return family(states, {"count": COUNT, "ask": ASK})


def nested() -> Scenario:
    return family({"s": {"machine": ["nest", "launch"], **KEEP}}, {"nest": NEST, "launch": LAUNCH})


def talk(request: AgentRequest) -> AgentResult:
    """Asks for two batches of tools, then says how long the conversation was."""
    turn, usage = number(request), Usage(api_calls=1, cost=0.01)
    batches = {
        "model0": [("look", "a"), ("skip", "b"), ("break", "c")],
        "model1": [("look", "d"), ("forbidden", "e"), ("look", "f")],
    }
    if turn in batches:
        calls = [{"id": id_, "name": name, "arguments": {"at": id_}} for name, id_ in batches[turn]]
        return AgentResult(
            tool_calls=calls, finish_reason="tool_use", usage=usage, rendered_user_prompt="go and look"
        )
    return AgentResult(content=f"{len(request.messages or ())} messages", finish_reason="stop", usage=usage)


LOOP = {"agent": "helper", "tool_loop": {"max_turns": 9, "denied_tools": ["forbidden"]}}


def tools() -> Scenario:
    states = {
        "s": {**LOOP, **KEEP, "transitions": to("t")},
        "t": {"action": "count", "transitions": [{"condition": "context.n >= 2", "to": "end"}, {"to": "s"}]},
    }
    return family(states, {}, Watching, answer=talk)


def cut_short() -> Scenario:
    loop = {**LOOP, "tool_loop": {"max_tool_calls": 3}}
    return family({"s": {**loop, **KEEP}}, {}, answer=talk)


def left() -> Scenario:
    arms = [{"condition": "context._tool_calls_count >= 2", "to": "t"}, {"to": "end"}]
    states = {"s": {**LOOP, **KEEP, "transitions": arms}, "t": {"action": "count", "transitions": to("end")}}
    return family(states, {}, Watching, answer=talk)


def samples() -> Scenario:
    def answer(request: AgentRequest) -> Any:
        return ValueError("no") if number(request) == "1" else f"sample {number(request)}"

    scenario = family(
        {"s": {"agent": "helper", "execution": {"type": "parallel", "n_samples": 4}, **KEEP}},
        {},
        answer=answer,
    )
    return Scenario(machine=scenario.machine, unordered=True)


def votes() -> Scenario:
    def answer(request: AgentRequest) -> Any:
        return ["", "a", "b", ValueError("no"), "b", "a", "a"][int(number(request))]

    execution = {"type": "mdap_voting", "k_margin": 3, "max_candidates": 8}
    return family({"s": {"agent": "helper", "execution": execution, **KEEP}}, {}, answer=answer)


def everything() -> Scenario:
    """One machine with every field that a state may have."""
    states = {
        "start": {"type": "initial", "wait_for": "begin", "output_to_context": {"got": "output.value"},
                  "transitions": to("all")},
        "all": {
            "action": "count", "launch": "launch", "machine": [{"name": "nest"}, {"name": "count", "input": {"v": 2}}],
            "input": {"v": 1}, "agent": "helper", "execution": {"type": "retry", "backoffs": [2]}, "timeout": 500,
            "session_id": "s{{ context.n }}", "output_to_context": {"got": "output"}, "transitions": to("each"),
        },
        "each": {
            "foreach": "{{ [1, 2, 3] }}", "as": "it", "key": "{{ it }}", "machine": "wait", "mode": "any",
            "timeout": 60, "input": {"v": "{{ it }}"}, "output_to_context": {"each": "output"},
            "on_error": {"default": "burst"},
            "transitions": to("loop"),
        },
        "loop": {**LOOP, "output_to_context": {"said": "output.content"}, "transitions": to("burst")},
        "burst": {"action": "fail", "on_error": {"KeyError": "end", "LookupError": "last"}, "transitions": to("end")},
        "last": {"action": "count", "transitions": to("end")},
    }  # fmt: skip

    def answer(request: AgentRequest) -> Any:
        return talk(request) if "model" in number(request) else "plain"

    machines = {"launch": LAUNCH, "nest": NEST, "count": COUNT, "wait": WAIT}
    return family(
        states, machines, Watching, answer=answer, context={"each": None, "said": None},
        signals={"begin": "now", "go/1": 1},
    )  # fmt: skip


FAMILIES: Mapping[str, Scenario] = {
    make.__name__: make()
    for make in (
        one, caught, listed, each, first, waiting, late, launches, nested, tools, cut_short, left, samples, votes,
        everything,
    )
}  # fmt: skip
