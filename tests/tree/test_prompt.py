"""The system prompt, section by section, and the tools a model is offered."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from pydantic import BaseModel
from travel import Desk, charter, desk, fare_watch, likes, tree, watcher

from flat.errors import CharterError, TreeError
from flat.tree import (
    BuiltinTool,
    Charter,
    GeneralTransition,
    Instance,
    Node,
    Pack,
    PromptContext,
    Ref,
    SerialTransition,
    Tool,
    build_system_prompt,
    create_transition,
    generate_tool_definitions,
    start_tree,
    system_prompt,
    transition,
    transition_to,
)
from flat.tree.instance import path_to
from flat.tree.prompt import SPEAK_NOTE, STEPS_LEFT

WHOLE = """\
You work for Flat Travel.

Plan the trip.

## Current Node State

```json
{
  "legs": [
    "Åre"
  ],
  "traveller": "Mira"
}
```

## Available Transitions

- **watch**: Start a fare watch
- **billing**: Hand over to billing
- **watch_too**: Report

**After you take a transition, tell the user what happens now.**

## Active Packs

### likes

What the traveller likes

Instructions:
Count in EUR.

State:
```json
{
  "currency": "EUR",
  "seats": {}
}
```

Warning: one more step after this one. Finish what you are doing."""


def prompt(root: Instance[Any], id: str, within: Charter = charter, **steps: int) -> str:
    return system_prompt(within, path_to(root, id), **steps).text


def names(within: Charter, node: Node[Any], *ancestors: Node[Any]) -> list[str]:
    return [definition["name"] for definition in generate_tool_definitions(within, node, ancestors)]


def schema_of(within: Charter, node: Node[Any], name: str) -> Any:
    return next(d for d in generate_tool_definitions(within, node) if d["name"] == name)["input_schema"]


def test_the_whole_prompt_of_a_primary() -> None:
    root = start_tree(charter, tree(legs=["Åre"], traveller="Mira"))
    assert prompt(root, "r", current_step=3, max_steps=4) == WHOLE


def test_the_stable_part_holds_only_what_does_not_change() -> None:
    root = start_tree(charter, tree())
    assert system_prompt(charter, (root,)).stable == "You work for Flat Travel.\n\nPlan the trip."


def test_a_worker_is_told_of_its_ancestors_and_of_no_pack() -> None:
    text = prompt(start_tree(charter, tree(watcher(), traveller="Mira")), "w")
    assert '## Ancestor Context\n\n### Ancestor 1: desk\n\nState: {\n  "legs": [],' in text
    assert "Active Packs" not in text
    assert SPEAK_NOTE not in text
    assert "- **report**: Report" in text


def test_ancestors_are_numbered_from_the_parent_and_shown_from_the_root() -> None:
    long = Node("x" * 101, dict)
    root = Instance(long, {}, Instance(desk, Desk(), watcher(), id="d"), id="r")
    text = prompt(root, "w")
    assert text.index("### Ancestor 2: " + "x" * 100 + "...\n") < text.index("### Ancestor 1: desk\n")
    assert "xxx..." not in prompt(Instance(Node("x" * 100, dict), {}, watcher(), id="r"), "w")


def test_no_transitions_say_none_and_ask_for_nothing() -> None:
    text = prompt(Instance(Node("Hi.", dict), {}, id="r"), "r")
    assert text.endswith("## Available Transitions\n\nNone")


def test_a_pack_lists_only_where_its_tools_are() -> None:
    other = Node("x", dict, name="other")
    root = start_tree(charter, tree(Instance(other, {}, id="o")))
    assert root.pack_states
    assert "Active Packs" not in prompt(root, "o")


def test_failing_pack_instructions_are_left_out_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pack = Pack("odd", "Odd", instructions=lambda state: state["nothing"])
    node = Node("x", dict, packs=[pack], initial_state={})
    with caplog.at_level(logging.WARNING):
        text = build_system_prompt(charter, node, {})
    assert "### odd\n\nOdd\n\nState:" in text
    assert 'the instructions of pack "odd" failed' in caplog.text


def test_an_edited_pack_speaks_with_its_own_instructions() -> None:
    edited = dataclasses.replace(likes, instructions="Be brief.")
    root = Instance(desk, Desk(), pack_states={"likes": {"currency": "EUR"}}, packs=[edited], id="r")
    assert "Instructions:\nBe brief." in prompt(root, "r")


def test_the_last_three_steps_are_told() -> None:
    root = tree()
    for left, note in STEPS_LEFT.items():
        assert prompt(root, "r", current_step=50 - left, max_steps=50).endswith(note)
    plain = prompt(root, "r")
    assert prompt(root, "r", current_step=47, max_steps=50) == plain
    assert prompt(root, "r", current_step=0, max_steps=2) == plain


def describe_state(state: Desk) -> str:
    return f"{len(state.legs)} legs"


def test_instructions_may_be_computed_from_the_state() -> None:
    typed = Node(describe_state, Desk)
    assert build_system_prompt(charter, typed, {"legs": ["a"]}).startswith(
        "You work for Flat Travel.\n\n1 legs"
    )
    loose = Node(lambda state: f"{state['n']}!", dict)
    assert "3!" in build_system_prompt(charter, loose, {"n": 3})
    with pytest.raises(TreeError, match=r"the instructions of node .* failed"):
        build_system_prompt(charter, loose, {})


def test_a_builder_replaces_everything_and_can_ask_for_the_default() -> None:
    seen: list[PromptContext] = []

    def build(context: PromptContext) -> str:
        seen.append(context)
        return "OWN " + context.default()

    nodes = {"desk": desk, "fare_watch": fare_watch}
    custom = Charter("c", instructions="Charter.", nodes=nodes, build_system_prompt=build)
    root = start_tree(custom, tree())
    assert prompt(root, "r", custom, current_step=1, max_steps=9).startswith("OWN Charter.\n\nPlan the trip.")
    assert seen[0].leaf is root
    assert seen[0].pack_states["likes"]["currency"] == "EUR"
    assert (seen[0].current_step, seen[0].max_steps, seen[0].packs) == (1, 9, (likes,))
    own = Node("x", dict, build_system_prompt=lambda context: f"mine: {context.state}")
    assert build_system_prompt(custom, own, {"a": 1}) == "mine: {'a': 1}"


# -- tools ------------------------------------------------------------------------


def test_tools_are_offered_in_one_order() -> None:
    assert names(charter, desk) == [
        "updateState",
        "transition",
        "transition_watch",
        "add_leg",
        "goodbye",
        "lookup_fare",
        "set_currency",
    ]
    assert names(charter, fare_watch, desk) == [
        "updateState",
        "transition",
        "lookup_fare",
        "add_leg",
        "goodbye",
    ]


def test_the_nearest_tool_of_a_name_shadows_the_others() -> None:
    def named(text: str) -> Tool[..., Any]:
        return Tool("same", text, execute=print)

    nodes = [Node("x", dict, tools=[named(text)]) for text in ("far", "near")]
    offered = generate_tool_definitions(Charter("c", tools=[named("charter")]), Node("x", dict), nodes)
    assert [d["description"] for d in offered if d["name"] == "same"] == ["near"]


def test_a_patch_is_offered_for_object_states_alone() -> None:
    assert schema_of(charter, desk, "updateState") == {
        "type": "object",
        "properties": {
            "patch": {
                "type": "object",
                "properties": {
                    "legs": {"type": "array", "items": {"type": "string"}},
                    "traveller": {"type": "string"},
                },
            }
        },
        "required": ["patch"],
    }
    assert "updateState" not in names(charter, Node("x", list[int]))


def test_references_inside_a_state_schema_stay_resolvable() -> None:
    class Leg(BaseModel):
        city: str

    class Trip(BaseModel):
        legs: list[Leg] = []

    schema = schema_of(charter, Node("x", Trip), "updateState")
    assert schema["properties"]["patch"]["properties"]["legs"]["items"] == {"$ref": "#/$defs/Leg"}
    assert "Leg" in schema["$defs"]


def test_transitions_without_arguments_share_one_tool() -> None:
    schema = schema_of(charter, desk, "transition")
    assert schema["properties"]["to"]["enum"] == ["billing", "watch_too"]
    assert schema["required"] == ["to", "reason"]
    assert "transition" not in names(charter, Node("x", dict))


def test_a_transition_with_arguments_keeps_their_own_required_list() -> None:
    schema = schema_of(charter, desk, "transition_watch")
    assert schema["required"] == ["reason", "leg"]
    assert list(schema["properties"]) == ["reason", "leg", "limit"]


def test_arguments_that_are_no_object_stand_under_args() -> None:
    go = create_transition(description="Go", execute=lambda s, c: transition_to(desk), arguments=list[int])
    schema = schema_of(charter, Node("x", dict, transitions={"go": go}), "transition_go")
    assert schema["properties"]["args"] == {"type": "array", "items": {"type": "integer"}}


def test_serial_and_general_transitions_have_their_own_schemas() -> None:
    given = {"type": "object", "properties": {"why": {"type": "string"}}}
    node = Node(
        "x",
        dict,
        transitions={
            "plain": SerialTransition(Ref("desk"), "Go on"),
            "asked": SerialTransition(Ref("desk"), "Go on", given),
            "new": GeneralTransition("Become anything"),
        },
    )
    assert schema_of(charter, node, "transition")["properties"]["to"]["enum"] == ["plain"]
    assert schema_of(charter, node, "transition_asked")["properties"]["args"] == given
    inline = schema_of(charter, node, "transition_new")["properties"]["node"]
    assert inline["required"] == ["instructions", "validator", "initialState"]
    assert inline["properties"]["tools"]["type"] == "object"


def test_a_transition_cannot_have_an_argument_called_reason() -> None:
    class Why(BaseModel):
        reason: str

    with pytest.raises(CharterError) as caught:
        create_transition(description="Go", execute=print, arguments=Why)
    assert caught.value.code == "reserved_name"


def test_a_reason_parameter_is_the_reason_and_no_argument() -> None:
    @transition
    def go(reason: str) -> Any:
        """Go on."""
        return transition_to(desk, {"traveller": reason})

    assert go.schema is None
    assert go.description == "Go on."


def test_tools_of_the_provider_are_named_with_their_type() -> None:
    node = Node("x", dict, tools=[BuiltinTool("web_search", "web_search_20250305")])
    assert generate_tool_definitions(charter, node)[1] == {
        "type": "web_search_20250305",
        "name": "web_search",
    }
