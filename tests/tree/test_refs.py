"""Trees to data and back."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
from travel import Desk, add_leg, charter, desk, fare_watch, likes, lookup_fare, report, tree, watch

from flat.core.op import UNSET
from flat.errors import CharterError, CharterMismatch, TreeError
from flat.tree import (
    BuiltinTool,
    Charter,
    Instance,
    Node,
    Output,
    Pack,
    PackPatch,
    Ref,
    Resumed,
    SerialTransition,
    Spawned,
    StatePatch,
    SuspendInfo,
    Tool,
    Transitioned,
    change_data,
    change_from_data,
    deserialize_instance,
    deserialize_node,
    resolve_node_ref,
    serialize_instance,
    serialize_node,
    start_tree,
    user_message,
)
from flat.tree.changes import Ceded, NewChild, Suspended
from flat.tree.refs import machine_data
from flat.tree.restore import machine_from_data

WAIT = SuspendInfo(
    suspend_id="buy-77", reason="Buyer", suspended_at="2026-03-14T09:30:00.000Z", metadata={"price": 118}
)
inline = Node(
    "Watch one fare and report a drop.",
    {"type": "object", "properties": {"leg": {"type": "string"}}, "required": ["leg"]},
    name="inline_watch",
    worker=True,
    tools={"lookup_fare": lookup_fare, "web": BuiltinTool("web", "web_search_1")},
    transitions={"report": report, "go": SerialTransition(Ref("desk"), "Go", {"type": "object"})},
    commands={"clear": desk.commands["clear"]},
    initial_state={"leg": ""},
    executor_config={"max_tokens": 800},
    packs=[likes],
    on_end_turn="nudge",
    max_steps=4,
    history="since_spawn",
)


def whole() -> Instance[Any]:
    """A tree with a pack, an inline worker that waits, and a registered one in the background."""
    below = Instance(inline, {"leg": "Oslo"}, suspended=WAIT, id="i", brief="Watch")
    beside = Instance(fare_watch, {"leg": "Rome"}, background=True, id="b")
    return start_tree(charter, tree(below, beside, traveller="Mira"))


def test_save_load_save_is_the_identity() -> None:
    data = serialize_instance(whole(), charter)
    again = serialize_instance(deserialize_instance(charter, json.loads(json.dumps(data))), charter)
    assert again == data


def test_a_registered_node_is_a_ref_and_an_inline_one_is_written_whole() -> None:
    data = serialize_instance(whole(), charter)
    assert data["node"] == {"ref": "desk"}
    assert data["packInstances"] == [{"state": {"currency": "EUR", "seats": {}}, "pack": {"ref": "likes"}}]
    node = data["children"][0]["node"]
    assert node == {
        "name": "inline_watch",
        "instructions": "Watch one fare and report a drop.",
        "validator": {
            "__schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {"leg": {"type": "string"}},
            "required": ["leg"],
        },
        "transitions": {
            "report": {"ref": "fare_watch.report"},
            "go": {
                "type": "serial",
                "description": "Go",
                "node": {"ref": "desk"},
                "arguments": {"type": "object"},
            },
        },
        "tools": {
            "lookup_fare": {"ref": "lookup_fare"},
            "web": {"type": "anthropic-builtin", "name": "web", "builtinType": "web_search_1"},
        },
        "commands": {"clear": {"ref": "desk.clear"}},
        "initialState": {"leg": ""},
        "worker": True,
        "packs": ["likes"],
        "executorConfig": {"maxTokens": 800},
        "history": "since_spawn",
        "onEndTurn": "nudge",
        "maxSteps": 4,
    }
    assert data["children"][0]["suspended"] == {
        "suspendId": "buy-77",
        "reason": "Buyer",
        "suspendedAt": "2026-03-14T09:30:00.000Z",
        "metadata": {"price": 118},
    }


def test_a_restored_inline_worker_is_a_worker_with_all_its_parts() -> None:
    node = deserialize_instance(charter, serialize_instance(whole(), charter)).children[0].node
    assert node.worker
    assert node.packs == (likes,)
    assert node.tools["lookup_fare"] is lookup_fare
    assert charter.resolved_transition(node.transitions["report"]) is report
    assert node.executor_config is not None
    assert node.executor_config.max_tokens == 800


def test_a_changed_copy_is_a_ref_unless_it_is_asked_for_inline() -> None:
    edited = dataclasses.replace(desk, instructions="Plan nothing.")
    assert serialize_node(edited, charter) == {"ref": "desk"}
    data = serialize_node(edited, charter, no_node_ref=True)
    assert (data["name"], data["instructions"]) == ("desk", "Plan nothing.")
    assert data["tools"]["add_leg"] == {"ref": "desk.add_leg"}
    assert data["transitions"]["watch"] == {"ref": "desk.watch"}
    back = deserialize_node(charter, data)
    assert back.id != desk.id
    assert back.tools["add_leg"] is add_leg
    assert charter.resolved_transition(back.transitions["watch"]) is watch


def test_computed_instructions_are_written_as_they_read_now() -> None:
    told = Node(lambda state: f"{state['n']} left", dict, initial_state={"n": 3})
    within = Charter("c", nodes={"told": told})
    assert serialize_node(told, within, no_node_ref=True)["instructions"] == "3 left"
    assert serialize_node(told, within, no_node_ref=True, state={"n": 1})["instructions"] == "1 left"
    with pytest.raises(CharterError, match="instructions: a function is not registered"):
        serialize_node(Node(lambda state: "x", dict), within)


@pytest.mark.parametrize(
    "node",
    [
        Node("x", dict, tools=[Tool("own", execute=print)]),
        Node("x", dict, transitions={"go": lambda state: None}),
        Node("x", dict, commands={"halt": lambda: None}),
        Node("x", dict, packs=[Pack("own")]),
        Node("x", dict, output=Output(dict, map_text_block=str.upper)),
        Node("x", dict, build_system_prompt=lambda context: "x"),
    ],
    ids=["tool", "transition", "command", "pack", "mapper", "builder"],
)
def test_code_that_no_name_leads_to_is_refused_unless_lossy(node: Node[Any]) -> None:
    with pytest.raises(CharterError) as caught:
        serialize_node(node, charter)
    assert caught.value.code == "unregistered_inline"
    data = serialize_node(node, charter, lossy=True)
    assert not [key for key in ("tools", "transitions", "commands") if data.get(key)]


def test_a_mapper_survives_under_its_name() -> None:
    within = Charter("c", mappers={"upper": str.upper})
    node = Node("x", dict, output=Output(dict, map_text_block=str.upper))
    back = deserialize_node(within, serialize_node(node, within))
    assert back.output is not None
    assert back.output.map("a") == "A"


def test_a_pack_that_the_charter_has_not_is_written_inline_and_one_that_was_edited_too() -> None:
    edited = dataclasses.replace(likes, instructions="Be brief.")
    root = Instance(
        desk, Desk(), pack_states={"likes": {"currency": "NOK", "seats": {}}}, packs=[edited], id="r"
    )
    (entry,) = serialize_instance(root, charter)["packInstances"]
    assert entry["pack"]["name"] == "likes"
    assert entry["pack"]["instructions"] == "Be brief."
    assert entry["pack"]["tools"] == {"set_currency": {"ref": "likes.set_currency"}}
    back = deserialize_instance(charter, serialize_instance(root, charter))
    assert back.packs[0].instructions == "Be brief."
    assert back.packs[0].tools == likes.tools
    assert back.pack_states == {"likes": {"currency": "NOK", "seats": {}}}


def test_a_pack_state_that_nobody_lists_is_saved_all_the_same() -> None:
    root = Instance(
        fare_watch, {"leg": "a", "limit": 1.0}, pack_states={"likes": {"currency": "NOK"}}, id="r"
    )
    assert serialize_instance(root, charter)["packInstances"] == [
        {"state": {"currency": "NOK"}, "pack": {"ref": "likes"}}
    ]


def test_the_older_form_of_pack_states_is_read() -> None:
    data = {"id": "r", "node": {"ref": "desk"}, "state": {}, "packStates": {"likes": {"currency": "NOK"}}}
    assert deserialize_instance(charter, data).pack_states == {"likes": {"currency": "NOK", "seats": {}}}


def test_every_problem_is_told_with_its_path() -> None:
    data = {
        "id": "r",
        "node": {"ref": "dsk"},
        "state": {},
        "packInstances": [
            {"state": {}, "pack": {"ref": "like"}},
            {"state": {"currency": 3}, "pack": {"ref": "likes"}},
        ],
        "children": [
            {"id": "a", "node": {"ref": "fare_watch"}, "state": {}},
            {
                "id": "b",
                "node": {
                    "instructions": "x",
                    "validator": {},
                    "tools": {"t": {"ref": "desk.ad_leg"}, "u": 3},
                    "transitions": {
                        "go": {"ref": "nowhere"},
                        "s": {"type": "serial", "node": {"ref": "dessk"}},
                    },
                    "commands": {"c": {"ref": "clear"}},
                    "packs": ["lik"],
                    "output": {"schema": {}, "mapper": "none"},
                },
                "state": {},
            },
        ],
    }
    with pytest.raises(CharterMismatch) as caught:
        deserialize_instance(charter, data)
    assert [(path, ref) for path, ref, _ in caught.value.problems] == [
        ("instance.node", "dsk"),
        ("instance.packInstances[0]", "like"),
        ("instance.packInstances[1]", "likes"),
        ("instance.children[0].state", ""),
        ("instance.children[1].node.tools.t", "desk.ad_leg"),
        ("instance.children[1].node.tools.u", ""),
        ("instance.children[1].node.transitions.go", "nowhere"),
        ("instance.children[1].node.transitions.s", "dessk"),
        ("instance.children[1].node.commands.c", "clear"),
        ("instance.children[1].node.packs[0]", "lik"),
        ("instance.children[1].node.output.mapper", "none"),
    ]
    assert 'instance.node: unknown node "dsk"; did you mean "desk"?' in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_migration_says_what_stands_for_a_lost_name() -> None:
    data = {"id": "r", "node": {"ref": "old_desk"}, "state": {}}
    moved = deserialize_instance(
        charter, data, on_missing=lambda kind, ref: desk if (kind, ref) == ("node", "old_desk") else None
    )
    assert moved.node is desk
    with pytest.raises(CharterMismatch):
        deserialize_instance(charter, data, on_missing=lambda kind, ref: None)


@pytest.mark.parametrize("data", [None, [], {"node": 3}, {"node": {"instructions": 3, "validator": {}}}])
def test_data_that_is_no_instance_is_refused(data: Any) -> None:
    with pytest.raises(CharterMismatch):
        deserialize_instance(charter, data)


def test_nodes_nested_beyond_all_reason_are_refused() -> None:
    data: dict[str, Any] = {"ref": "desk"}
    for _ in range(150):
        data = {
            "instructions": "x",
            "validator": {},
            "transitions": {"go": {"type": "serial", "description": "d", "node": data}},
        }
    with pytest.raises(TreeError, match="nested more than 100 deep"):
        deserialize_node(charter, data)


def test_a_loaded_state_is_the_validated_one() -> None:
    loaded = deserialize_instance(charter, {"id": "r", "node": {"ref": "desk"}, "state": {"ghost": 1}})
    assert loaded.state == {"legs": [], "traveller": ""}


def test_a_loaded_tree_keeps_the_rules_of_trees() -> None:
    twice = {"id": "r", "node": {"ref": "desk"}, "state": {}}
    with pytest.raises(TreeError) as caught:
        deserialize_instance(charter, {**twice, "children": [twice]})
    assert caught.value.code == "tree_cycle"
    two = [{**twice, "id": "a"}, {**twice, "id": "b"}]
    with pytest.raises(TreeError) as caught:
        deserialize_instance(charter, {**twice, "children": two})
    assert caught.value.code == "two_primaries"


def test_a_ref_or_an_inline_form_gives_a_node() -> None:
    assert resolve_node_ref(charter, {"ref": "desk"}) is desk


def test_a_machine_is_saved_with_its_history_and_queue() -> None:
    root, history, queue = whole(), [user_message("plan")], [user_message("more")]
    data = machine_data(charter, root, history, queue=queue, digest="sha256:1", seq=4, turn={"open": True})
    assert data["format"] == "flat.tree/1"
    assert data["charter"] == {"name": "travel", "hash": "sha256:1"}
    back = machine_from_data(charter, json.loads(json.dumps(data)))
    assert (back.history, back.queue, back.seq, back.digest) == (history, queue, 4, "sha256:1")
    assert serialize_instance(back.instance, charter) == data["instance"]


def test_a_machine_without_the_fields_of_flat_is_read() -> None:
    back = machine_from_data(
        charter, {"instance": {"id": "r", "node": {"ref": "desk"}, "state": {}}, "history": []}
    )
    assert (back.instance.id, back.queue, back.turn) == ("r", [], None)


CHANGES = [
    StatePatch(instance_id="r", patch={"a": 1}),
    StatePatch(instance_id="r", patch={}, drop=("b",)),
    StatePatch(instance_id="r", patch={}, value=[1]),
    PackPatch(pack_name="p", patch={}, owner_id="f"),
    Transitioned(instance_id="r", node={"ref": "desk"}, state=None),
    Transitioned(instance_id="r", node={"ref": "desk"}),
    Spawned(
        parent_instance_id="r",
        children=(
            NewChild(node={"ref": "w"}, state={}, id="1"),
            NewChild(node={"ref": "w"}, background=True),
        ),
    ),
    Ceded(instance_id="r", content=[{"role": "user", "items": "x"}]),
    Suspended(instance_id="r", suspend_info=WAIT),
    Resumed(instance_id="r", suspend_id="s", payload=None),
    Resumed(instance_id="r", suspend_id="s"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.kind)
def test_changes_survive_the_wire(change: Any) -> None:
    assert change_from_data(json.loads(json.dumps(change_data(change)))) == change


def test_changes_are_camel_case_and_leave_defaults_out() -> None:
    assert change_data(CHANGES[0]) == {"kind": "state", "instanceId": "r", "patch": {"a": 1}}
    assert change_data(CHANGES[3]) == {"kind": "packState", "packName": "p", "patch": {}, "ownerId": "f"}
    assert "state" not in change_data(CHANGES[5])
    assert change_data(CHANGES[6])["children"][0] == {"node": {"ref": "w"}, "state": {}, "id": "1"}
    assert Resumed(instance_id="r").payload is UNSET
