"""What a charter, a node and a pack refuse, and how they resolve names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel
from travel import Desk, Watch, add_leg, charter, desk, lookup_fare, set_currency

from flat.core.op import UNSET
from flat.errors import CharterError, CharterMismatch, DefinitionError
from flat.tree import (
    Charter,
    Command,
    Ctx,
    ExecutorConfig,
    Node,
    Output,
    Pack,
    Ref,
    SerialTransition,
    StandardExecutor,
    Tool,
    command_result,
    create_charter,
    create_node,
    create_worker_node,
    tool,
)


def node(**options: Any) -> Node[Any]:
    return Node("Be good.", dict, name="n", **options)


def refusal(code: str, make: Any) -> str:
    with pytest.raises(CharterError) as caught:
        make()
    assert caught.value.code == code
    assert isinstance(caught.value, DefinitionError)
    return str(caught.value)


def test_a_tool_stands_under_its_own_name() -> None:
    text = refusal("name_mismatch", lambda: node(tools={"fare": lookup_fare}))
    assert text == 'node "n": the tool "lookup_fare" stands under the key "fare"; make them the same'
    refusal("name_mismatch", lambda: Charter("c", tools={"fare": lookup_fare}))
    refusal("name_mismatch", lambda: Pack("p", tools={"fare": lookup_fare}))


def test_a_command_stands_under_its_own_name() -> None:
    stop = Command("stop", execute=lambda given: command_result())
    refusal("name_mismatch", lambda: node(commands={"halt": stop}))
    refusal("name_mismatch", lambda: Pack("p", commands={"halt": stop}))


@pytest.mark.parametrize("name", ["updateState", "transition", "transition_x"])
def test_names_of_the_tree_are_refused_for_tools_everywhere(name: str) -> None:
    taken = Tool(name, "x", execute=lambda given: "")
    refusal("reserved_name", lambda: node(tools=[taken]))
    refusal("reserved_name", lambda: Charter("c", tools=[taken]))
    refusal("reserved_name", lambda: Pack("p", tools=[taken]))


def test_a_tool_name_that_no_provider_takes_is_refused() -> None:
    assert '"look up"' in refusal("bad_name", lambda: node(tools=[Tool("look up", execute=print)]))


def test_two_packs_with_one_name_are_refused() -> None:
    refusal("duplicate_name", lambda: Charter("c", packs=[Pack("p"), Pack("p")]))
    refusal("duplicate_name", lambda: node(packs=[Pack("p"), Pack("p")]))
    other = node(packs=[Pack("p")])
    refusal("duplicate_name", lambda: Charter("c", packs=[Pack("p")], nodes={"n": other}))


def test_a_node_name_with_a_dot_is_refused() -> None:
    refusal("bad_name", lambda: Charter("c", nodes={"a.b": node()}))


def test_two_tools_in_a_list_with_one_name_are_refused() -> None:
    refusal("duplicate_name", lambda: node(tools=[add_leg, add_leg]))


def test_a_charter_tells_every_ref_that_leads_nowhere() -> None:
    lost = node(
        transitions={"a": Ref("desk.watc"), "b": SerialTransition(Ref("dsk"), "go"), "c": Ref("nothing")}
    )
    text = refusal("unknown_ref", lambda: Charter("c", nodes={"desk": desk, "lost": lost}))
    assert 'nodes.lost.transitions.a: unknown transition "desk.watc"; did you mean "watch"?' in text
    assert 'nodes.lost.transitions.b: unknown node "dsk"; did you mean "desk"?' in text
    assert "nodes.lost.transitions.c" in text


def test_a_tool_for_a_node_is_refused_in_a_pack_and_the_other_way() -> None:
    assert "annotate `ctx` with that" in refusal("wrong_context", lambda: Pack("p", tools=[add_leg]))
    refusal("wrong_context", lambda: node(tools=[set_currency]))
    refusal("wrong_context", lambda: node(commands=[add_leg.execute]))


def test_an_initial_state_that_the_schema_refuses_is_refused_at_once() -> None:
    text = refusal("invalid_state", lambda: Node("x", Desk, initial_state={"legs": 3}))
    assert "`legs`: Input should be a valid list, got 3" in text


def test_a_model_of_another_class_is_no_state() -> None:
    text = refusal("invalid_state", lambda: Node("x", Desk, initial_state=Watch(leg="a")))
    assert "a Desk is expected, got a Watch" in text


def test_an_initial_state_is_copied_and_completed() -> None:
    given: dict[str, Any] = {"legs": ["Oslo"]}
    made = Node("x", Desk, initial_state=given)
    given["legs"].append("Turin")
    made.first_state()["legs"].append("Rome")
    assert made.first_state() == {"legs": ["Oslo"], "traveller": ""}
    assert Node("x", Desk).first_state() is UNSET


def test_executor_settings_of_a_wrong_type_are_refused() -> None:
    refusal("executor_config_type", lambda: node(executor_config={"model": 3}))
    refusal("executor_config_type", lambda: node(executor_config={"temperature": True}))
    assert 'did you mean "model"' in refusal(
        "executor_config_type", lambda: node(executor_config={"modle": "m"})
    )


def test_settings_of_a_node_go_before_those_of_the_executor_one_by_one() -> None:
    default = StandardExecutor(model="big", max_tokens=10).config
    assert ExecutorConfig(model="small", temperature=0).over(default) == ExecutorConfig(
        model="small", max_tokens=10, temperature=0
    )


def test_a_setting_outside_its_choices_is_refused_with_the_nearest() -> None:
    assert 'did you mean "nudge"' in refusal("bad_setting", lambda: node(on_end_turn="nudg"))
    refusal("bad_setting", lambda: node(history="mine"))


def test_an_executor_must_answer_calls() -> None:
    refusal("not_an_executor", lambda: Charter("c", executor=3))  # type: ignore[arg-type]


def test_the_worker_constructor_leaves_packs_out() -> None:
    worker = create_worker_node("x", Desk, packs=[Pack("p")])
    assert worker.worker
    assert worker.packs == ()
    assert worker.sees == "own"
    assert desk.sees == "shared"


def test_a_copy_of_a_node_still_counts_as_the_registered_one() -> None:
    copy = dataclasses.replace(desk, instructions="Plan nothing.")
    assert copy.instructions == "Plan nothing."
    assert copy.tools == desk.tools
    assert charter.name_of(copy) == "desk"
    assert charter.name_of(node()) is None


def test_names_are_resolved_with_a_hint() -> None:
    assert charter.tool("lookup_fare") is lookup_fare
    assert charter.tool("desk.add_leg") is add_leg
    assert charter.tool("likes.set_currency") is set_currency
    assert charter.transition("desk.watch_too") is charter.node("fare_watch").transitions["report"]
    assert charter.command("desk.clear").name == "clear"
    for look_up, ref in (
        (charter.node, "dsk"),
        (charter.tool, "desk.ad_leg"),
        (charter.command, "clear"),
        (charter.pack, "like"),
        (charter.transition, "desk.watc"),
    ):
        with pytest.raises(CharterMismatch) as caught:
            look_up(ref)  # type: ignore[operator]
        assert caught.value.code == "unknown_ref"


def test_instructions_are_text_or_a_plain_function() -> None:
    async def later(state: Any) -> str:
        return ""

    refusal("bad_instructions", lambda: Node(later, dict))  # type: ignore[arg-type]
    refusal("bad_instructions", lambda: Node(3, dict))  # type: ignore[arg-type]


def test_a_type_that_is_no_schema_is_refused() -> None:
    class Odd:
        pass

    refusal("invalid_schema", lambda: Node("x", Odd))
    refusal("invalid_schema", lambda: Node("x", {"type": "nothing"}))


def test_structured_output_is_read_and_checked() -> None:
    class Plan(BaseModel):
        days: int

    assert Output(Plan).map('{"days": 3}') == {"days": 3}
    with pytest.raises(Exception, match="days"):
        Output(Plan).map('{"days": "many"}')
    with pytest.raises(Exception, match="not JSON"):
        Output(Plan).map("three")
    assert Output(Plan, map_text_block=str.upper).map("three") == "THREE"


def test_the_readme_forms_exist() -> None:
    idle = create_node(
        instructions="You are a helpful assistant.",
        validator=Desk,
        tools={},
        transitions={},
        initial_state={"legs": []},
    )
    made = create_charter(name="demo", executor=StandardExecutor(api_key="k"), nodes={"idle": idle})
    assert made.node("idle") is idle
    assert "api_key" not in repr(made.executor)


def test_a_context_may_be_told_by_its_name_alone() -> None:
    @tool
    def bare(city: str, ctx) -> str:  # type: ignore[no-untyped-def]
        return city

    assert node(tools=[bare]).tools["bare"] is bare
    assert isinstance(bare, Tool)
    assert bare.schema.json_schema()["required"] == ["city"]
    assert Ctx is not None
