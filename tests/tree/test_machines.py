"""Other machines inside a tree, up to the point where the engine starts them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from travel import Watch, call

from flat.errors import CharterError
from flat.tree import (
    Charter,
    Instance,
    MachineUse,
    Node,
    Pack,
    describe,
    deserialize_node,
    generate_tool_definitions,
    machine_node,
    machine_tool,
    serialize_node,
    user_message,
)
from flat.tree.lower import TreeBinding, plan

pytestmark = pytest.mark.anyio


class Order(BaseModel):
    customer: str
    amount: float = 1.0


def total(output: Any) -> str:
    return f"total {output['sum']}"


invoice = machine_tool(
    "invoice",
    "Write an invoice",
    input_schema=Order,
    input=lambda order: {"who": order["customer"], "how_much": order["amount"]},
    output=total,
)
plain = machine_tool("audit", timeout=9)
onboarding = machine_node(
    "onboarding",
    Watch,
    name="onboard",
    input=lambda state: {"leg": state["leg"]},
    cede=lambda output: [user_message(output["text"])],
)
desk = Node("x", dict, name="desk", tools=[invoice, plain], initial_state={})
charter = Charter("c", nodes={"desk": desk, "onboard": onboarding})
binding = TreeBinding(charter)
TREE = json.loads(
    json.dumps(binding.started(Instance(desk, {}, Instance(onboarding, Watch(leg="a"), id="o"), id="r")))
)


def asked(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "c", "name": name, "arguments": arguments}


def test_a_machine_is_offered_like_any_tool() -> None:
    offered = {d["name"]: d for d in generate_tool_definitions(charter, desk)}
    assert offered["invoice"]["description"] == "Write an invoice"
    assert offered["invoice"]["input_schema"]["required"] == ["customer"]
    assert offered["audit"]["description"] == 'Run "audit".'


def test_the_engine_is_told_which_tools_and_nodes_are_machines() -> None:
    nodes = plan(charter).nodes
    assert nodes["desk"].tools == {
        "invoice": {"machine": "invoice"},
        "audit": {"machine": "audit", "timeout": 9},
    }
    assert (nodes["onboard"].machine, nodes["onboard"].worker) == ("onboarding", True)
    assert describe(charter)["nodes"]["onboard"]["machine"] == "onboarding"


def test_arguments_become_the_input_and_the_output_the_result() -> None:
    given = binding.machine_input(TREE, "r", asked("invoice", customer="Mira"))
    assert given == {"input": {"who": "Mira", "how_much": 1.0}}
    done = binding.machine_outcome(TREE, "r", asked("invoice"), {"sum": 3})
    assert done == {"content": "total 3"}
    assert binding.machine_outcome(TREE, "r", asked("audit"), {"ok": True}) == {"content": '{"ok":true}'}


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("invoice", {}, "invalid_tool_input"),
        ("nothing", {}, "unknown_tool"),
        ("updateState", {}, "unknown_tool"),
    ],
)
def test_a_wrong_call_is_an_outcome_and_starts_nothing(name: str, arguments: Any, code: str) -> None:
    outcome = binding.machine_input(TREE, "r", asked(name, **arguments))["outcome"]
    assert (outcome["is_error"], outcome["code"]) == (True, code)


def test_what_an_author_gets_wrong_is_an_outcome_too() -> None:
    assert binding.machine_outcome(TREE, "r", asked("invoice"), {})["code"] == "tool_failed"
    odd = machine_tool("odd", input=lambda given: 3)  # type: ignore[arg-type, return-value]
    node = Node("x", dict, name="n", tools=[odd], initial_state={})
    other = TreeBinding(Charter("c", nodes={"n": node}))
    tree = other.started(Instance(node, id="r"))
    assert other.machine_input(tree, "r", asked("odd"))["outcome"]["code"] == "bad_input"


async def test_a_machine_cannot_be_called_like_a_function() -> None:
    outcome = await call(binding.tree(TREE), "invoice", {"customer": "Mira"}, within=charter)
    assert (outcome.is_error, outcome.code) == (True, "needs_machine")


def test_a_node_hands_its_state_in_and_cedes_what_comes_out() -> None:
    assert binding.node_input(TREE, "o") == {"leg": "a"}
    assert binding.node_content(TREE, "o", {"text": "done"}) == [{"role": "user", "items": "done"}]
    bare = machine_node("bare", initial_state={"n": 1})
    other = TreeBinding(Charter("c", nodes={"bare": bare}))
    tree = other.started(Instance(bare, id="b"))
    assert other.node_input(tree, "b") == {"n": 1}
    assert other.node_content(tree, "b", {"ok": 1}) == '{"ok":1}'


def test_a_node_that_runs_a_machine_can_be_stored_inline_unless_it_has_functions() -> None:
    stored = serialize_node(machine_node("bare"), charter)
    assert stored["machine"] == "bare"
    assert deserialize_node(charter, stored).machine == MachineUse("bare")
    with pytest.raises(CharterError, match="maps its input or output"):
        serialize_node(machine_node("bare", input=lambda state: {}), charter)


def test_a_pack_has_no_machines_and_a_machine_has_a_name() -> None:
    with pytest.raises(CharterError, match="belongs to a node"):
        Pack("p", tools=[invoice])
    with pytest.raises(CharterError, match="needs the name"):
        machine_tool("")
