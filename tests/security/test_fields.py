"""Every field that is rendered, against hostile configuration and against hostile answers of a model.

The machine is driven by calls, without any I/O: what the core asks the world to do is what an attacker could have
changed. `FIELDS` names each field with a state that holds it; a test compares it with what the ops really hold,
so that a new field cannot be forgotten.
"""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from attacks import ATTRIBUTES, CHOSEN, LEAKS, REFUSED, SSTI, Bait

import flat.core.ops as ops
from flat.agents.prompts import Prompts
from flat.agents.protocol import AgentRequest
from flat.core.advance import advance, begin
from flat.core.condition import Condition
from flat.core.effects import AwaitSignal, CallAgent, Effect, StartChild
from flat.core.events import Done, Ended, Reply, Started
from flat.core.ops import AnyOp
from flat.core.program import Program
from flat.core.template import CompiledList, CompiledMapping, Template
from flat.core.turn import Advance
from flat.errors import ExpressionError
from flat.spec.load import load_machine_dict
from flat.spec.lower import lower

AT = 1000.0
State = dict[str, Any]

CHILD = {"spec": "flatmachine", "spec_version": "2.5.0", "data": {"states": {"done": {"type": "final"}}}}
AGENT = {
    "spec": "flatagent",
    "spec_version": "2.5.0",
    "data": {"model": {"name": "x", "provider": "y"}, "user": "hi"},
}

FIELDS: dict[str, Callable[[str], State]] = {
    "Call.input": lambda t: {"agent": "a", "input": {"x": t, "deep": {"x": [t]}}},
    "Call.session_id": lambda t: {"agent": "a", "session_id": t},
    "Assign.entries": lambda t: {"agent": "a", "output_to_context": {"got": t}},
    "Wait.channel": lambda t: {"wait_for": t},
    "Children.input": lambda t: {"machine": "m", "input": {"x": t}},
    "Children.input of items": lambda t: {"machine": "m", "foreach": "context.l", "input": {"x": t}},
    "ChildCall.input": lambda t: {"machine": [{"name": "m", "input": {"x": t}}]},
    "Children.foreach": lambda t: {"machine": "m", "foreach": t, "input": {"x": "{{ item }}"}},
    "Children.item_key": lambda t: {"machine": "m", "foreach": "context.one", "key": t},
    "Launch.input": lambda t: {"launch": "m", "launch_input": {"x": t}},
    "Converse.input": lambda t: {"agent": "a", "tool_loop": {"max_turns": 3}, "input": {"x": t}},
    "Converse.session_id": lambda t: {"agent": "a", "tool_loop": {"max_turns": 3}, "session_id": t},
    **{
        f"Guardrails.{name}": lambda t, name=name: {"agent": "a", "tool_loop": {name: t}}  # type: ignore[misc]
        for name in ("max_turns", "max_tool_calls", "tool_timeout", "total_timeout", "max_cost")
    },
}  # fmt: skip
"""Fields of states; those of the machine's `context` and of a final `output` have tests of their own."""
ELSEWHERE = {"Finish.output", "Branch.arms", "Converse.arms"}

VALUES: dict[str, Any] = {
    "s": "text", "l": [1, 2, 3], "d": {"a": 1, "secret_of_nobody": 2}, "n": 5, "f": 1.5, "x": None, "b": b"bytes", "set": {1},
    "rows": [{"n": 1}, {"n": 2}], "one": [7],
}  # fmt: skip


def machine(
    states: Mapping[str, State],
    context: Mapping[str, Any] | None = None,
    *,
    compat: bool = False,
    **data: Any,
) -> Program:
    config = {
        "spec": "flatmachine",
        "spec_version": "2.5.0",
        "data": {
            "context": {**{name: f"input.{name}" for name in (*VALUES, "bait", "items")}, **(context or {})},
            "agents": {"a": AGENT},
            "machines": {"m": CHILD},
            "states": {**states, "end": {"type": "final"}},
            **data,
        },
    }
    return lower(load_machine_dict(config, check=False, compat=compat))


def chain(states: Sequence[State]) -> dict[str, State]:
    """The states one after another, whether they fail or not."""
    named = {}
    for n, state in enumerate(states):
        target = f"s{n + 1}" if n + 1 < len(states) else "end"
        arms = [*state.get("transitions", ()), {"to": target}]
        named[f"s{n}"] = {**state, "transitions": [{"to": target, **arm} for arm in arms], "on_error": target}
    return named


def drive(program: Program, given: Mapping[str, Any], reply: Any) -> Iterator[Advance]:
    """Every step of a run in which each agent answers with `reply`."""
    event = Started(given, AT)
    step = advance(program, begin(program, "e1", event, max_steps=None, max_agent_calls=None), event)
    yield step
    waiting = list(step.effects)
    while waiting:
        effect = waiting.pop(0)
        step = advance(program, step.snapshot, Done(effect.id, answer(effect, reply), AT))
        waiting += step.effects
        yield step


def answer(effect: Effect, reply: Any) -> Any:
    if isinstance(effect, CallAgent):
        return Reply(payload={"content": reply}, text=str(reply))
    return Ended(output={}) if isinstance(effect, StartChild) else {}


def harmless(program: Program) -> int:
    """Run to the end, and look at all that the run asked for and kept. Returns how many states were entered."""
    bait = Bait()
    given = {**copy.deepcopy(VALUES), "bait": bait, "items": [1]}
    entered = 0
    for step in drive(program, given, "ok"):
        shown = repr((step.effects, step.launched, step.snapshot.output))
        assert [leak for leak in LEAKS if leak in shown] == []
        entered += sum(how == "enter" for how, _, _ in step.path)
    last = step.snapshot
    context = next(iter(last.instances.values())).context
    assert last.status == "done", last.failure
    assert [leak for leak in LEAKS if leak in repr((context, last.output))] == []
    assert not bait.fired
    assert {name: given[name] for name in VALUES} == VALUES
    assert {name: context[name] for name in VALUES} == VALUES
    return entered


# -- from configuration ---------------------------------------------------------------------


def templated() -> set[str]:
    """The fields of the ops, and of what they hold, that may hold a template."""
    found = set()
    classes = [*typing.get_args(AnyOp), ops.ChildCall, ops.Guardrails]
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if any(
                word in str(hints[field.name]) for word in ("Template", "Compiled", "Condition", "Arm", "Any")
            ):
                found.add(f"{cls.__name__}.{field.name}")
    return found


def test_every_field_with_a_template_is_attacked() -> None:
    assert templated() - ELSEWHERE == {name.partition(" ")[0] for name in FIELDS}


@pytest.mark.parametrize("mode", ["text", "native", "compat"])
@pytest.mark.parametrize("field", FIELDS)
def test_hostile_configuration_does_nothing(field: str, mode: str) -> None:
    attacks = (*CHOSEN, "context.__class__", "context.bait.secret", "input.s.__class__")
    states = chain([FIELDS[field](attack) for attack in attacks])
    entered = harmless(machine(states, compat=mode == "compat", settings={"native_types": mode == "native"}))
    assert entered == len(attacks) + 1


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_hostile_context_and_output_do_nothing(native: bool) -> None:
    for attack in CHOSEN:
        settings = {"native_types": native}
        for program in (
            machine({}, {"y": attack}, settings=settings),
            machine({"first": {"type": "final", "output": {"y": attack}}}, settings=settings),
        ):
            try:
                for step in drive(program, {**copy.deepcopy(VALUES), "bait": Bait(), "items": [1]}, "ok"):
                    shown = repr(
                        (step.snapshot.output, [i.context for i in step.snapshot.instances.values()])
                    )
                    assert [leak for leak in LEAKS if leak in shown] == [], attack
            except ExpressionError as error:
                shown = str(error).replace(attack, "")
                assert [leak for leak in LEAKS if leak in shown] == [], attack


CEL = (
    "context.s.__class__ == 1", "context.bait.secret == 'x'", "context.bait.run()", "type(context.bait) == string",
    "context.__class__ == null", "context['__class__'] == null", "google.protobuf.Any{} == null", "google.protobuf.Value{}",
    "google.protobuf.Struct{fields: {'a': null}} == {}", "google.protobuf.FileDescriptorProto{name: 'x'}", "cel.bind(x, 1, true)",
    "context.l.map(x, x.__init__) == []", "has(context.l.__class__)", "context.l + [context.bait] == []", "{context.bait: 1} == {}",
    "string(context.bait) == 'bait'", "bytes(context.bait) == b''", "dyn(context.bait) == 1", "context.bait == context.bait",
    "context.exists(k, context[k] == context.bait)", "context == context", "context.map(k, context[k]) == []", "optional.of(context)",
    "context.s.format([context])", "proto.getExt(context, x)", "math.greatest(context.l)", "context.?s", "context.s.replace('t', 'u')",
    "'a' + context.bait", "-context.bait == 1", "context.bait in context.l", "context.bait ? true : false", "context.d.all(k, k.bait)",
    "net.isIP(context.s)", "re.extract(context.s, 't')", "json(context) == ''", "env('HOME')", "os.environ", "__import__('os')",
)  # fmt: skip


@pytest.mark.parametrize("engine", ["simple", "cel"])
def test_hostile_conditions_do_nothing(engine: str) -> None:
    attacks = [text for text in (*ATTRIBUTES, *REFUSED, *CEL) if "\ud800" not in text]
    assert len(attacks) >= 120
    states = chain([{"transitions": [{"condition": attack}]} for attack in attacks])
    assert harmless(machine(states, expression_engine=engine)) == len(attacks) + 1


@pytest.mark.parametrize("engine", ["simple", "cel"])
def test_templates_are_no_conditions(engine: str) -> None:
    states = chain([{"transitions": [{"condition": attack, "to": "end"}]} for attack in SSTI])
    assert harmless(machine(states, expression_engine=engine)) == len(SSTI) + 1


@pytest.mark.parametrize("field", ["system", "user", "instruction_suffix", "post_history_instructions"])
def test_hostile_prompts_do_nothing(field: str) -> None:
    for attack in CHOSEN:
        bait = Bait()
        given = {**copy.deepcopy(VALUES), "bait": bait}
        try:
            prompts = Prompts({"user": "hi", field: attack.replace("context.", "input.")}, {"name": "m"})
            messages, _ = prompts.messages(AgentRequest(input=given, context={"bait": bait}))
        except ExpressionError as error:
            shown = str(error).replace(attack.replace("context.", "input."), "")
        else:
            shown = str(messages)
        assert [leak for leak in LEAKS if leak in shown] == [], attack
        assert not bait.fired
        assert {name: given[name] for name in VALUES} == VALUES


# -- from the answer of a model ---------------------------------------------------------------

BRACES = "{{ context.v }}"


def _carriers(path: str) -> list[State]:
    """States that pass a value of the context on, in every field that can."""
    return [
        {"agent": "a", "input": {"x": path, "deep": {"x": [path]}}},
        {"agent": "a", "session_id": path},
        {"wait_for": path},
        {"machine": "m", "input": {"x": path}},
        {"machine": [{"name": "m", "input": {"x": path}}]},
        {"machine": "m", "foreach": "context.listed", "input": {"x": "{{ item }}"}, "key": "{{ item }}"},
        {"launch": "m", "launch_input": {"x": path}},
        {"agent": "a", "tool_loop": {"max_turns": 3}, "input": {"x": path}, "session_id": path},
        {"agent": "a", "output_to_context": {"again": path}},
        *({"agent": "a", "tool_loop": {name: path}, "output_to_context": {name: path}}
          for name in ("max_turns", "max_cost")),
    ]  # fmt: skip


def _relay(engine: str, native: bool) -> Program:
    first = {
        "agent": "a",
        "output_to_context": {
            "v": "output.content", "braces": "{{ output.content }}", "glued": "{{ '' ~ output.content }}",
        },
    }  # fmt: skip
    same = {
        "transitions": [
            {"condition": "context.v == context.braces", "to": "compared"},
            {"condition": "context.v == 1", "to": "end"},
        ]
    }
    carriers = [state for path in ("context.v", BRACES) for state in _carriers(path)]
    states = {
        **chain([first, *carriers, same]),
        "compared": {
            "type": "final",
            "output": {"bare": "context.v", "braces": BRACES, "again": "{{ context.again }}"},
        },
    }
    return machine(
        states, {"listed": "input.listed"}, expression_engine=engine, settings={"native_types": native}
    )


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
@pytest.mark.parametrize("engine", ["simple", "cel"])
def test_what_a_model_says_is_never_evaluated(engine: str, native: bool) -> None:
    program = _relay(engine, native)
    attacks = (
        *CHOSEN,
        *ATTRIBUTES[::7],
        *CEL[::3],
        "context.s",
        "input.s",
        "{{ context.s }}",
        "1 == 1",
        "true",
        "'{{ 7 * 7 }}'",
    )
    for attack in attacks:
        said = _said(program, attack)
        assert said == {attack}, attack


def _said(program: Program, attack: str) -> set[Any]:
    """All that the run made of an agent's answer."""
    given = {**copy.deepcopy(VALUES), "bait": "bait", "items": [1], "listed": [attack]}
    said: set[Any] = set()
    calls = 0
    for step in drive(program, given, attack):
        for effect in (*step.effects, *step.launched):
            if isinstance(effect, CallAgent):
                calls += 1
                if effect.input:
                    said |= {effect.input["x"], *effect.input.get("deep", {"x": []})["x"]}
                if effect.session_id is not None:
                    said.add(effect.session_id)
            elif isinstance(effect, AwaitSignal):
                said.add(effect.channel)
            elif isinstance(effect, StartChild):
                said.add(effect.input["x"])
    assert calls >= 8
    assert step.snapshot.status == "done"
    context = next(iter(step.snapshot.instances.values())).context
    return (
        said
        | {context[name] for name in ("v", "braces", "glued", "again")}
        | set(step.snapshot.output.values())
    )


def test_what_a_model_says_is_never_evaluated_in_a_prompt() -> None:
    texts = {
        "system": "{{ input.v }}", "user": "{{ input.v }}", "instruction_suffix": "{{ input.v }}",
        "post_history_instructions": "{{ input.v }}{{ context.v }}",
    }  # fmt: skip
    prompts = Prompts(texts, {"name": "m"})
    for attack in CHOSEN:
        history = [{"role": "user", "content": attack}, {"role": "assistant", "content": attack}]
        request = AgentRequest(input={"v": attack}, context={"v": attack}, messages=history, new_turn=True)
        messages, rendered = prompts.messages(request)
        assert rendered == f"{attack}\n\n{attack}"
        assert [m["content"] for m in messages] == [
            attack,
            attack,
            attack,
            f"{rendered}\n\nSystem:\n\n{attack}{attack}",
        ]


def test_keys_of_a_model_are_never_rendered() -> None:
    for attack in CHOSEN:
        value = {attack: attack, "list": [attack, {attack: [attack]}]}
        scope = {"context": {"v": value}}
        assert Template("context.v").render(scope) is value
        assert Template("{{ context.v }}", native=True).render(scope) == value
        assert Condition("context.v == context.v").test(scope)


def test_rendered_values_are_not_templates_any_more() -> None:
    """A compiled structure is made once: rendering it twice with hostile values compiles nothing."""
    from flat.core.template import compile_value

    compiled = compile_value({"a": "{{ context.v }}", "b": ["context.v", {"c": "{{ context.v }}"}]})
    assert isinstance(compiled, CompiledMapping)
    assert isinstance(dict(compiled.parts)["b"], CompiledList)
    for attack in CHOSEN:
        first = compiled.render({"context": {"v": attack}})
        assert first == {"a": attack, "b": [attack, {"c": "{{ context.v }}"}]}
