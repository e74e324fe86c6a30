"""What user interfaces get: dry data, callables, the display form, and contracts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from travel import charter, desk, fare_watch, likes, tree, watcher

from flat.errors import CharterMismatch
from flat.tree import (
    Charter,
    Command,
    Instance,
    Node,
    Pack,
    SerialTransition,
    SuspendInfo,
    assert_machine_contract,
    command_result,
    create_dry_client_instance,
    create_dry_client_node,
    create_machine_contract,
    find_command,
    hydrate_client_instance,
    hydrate_client_node,
    serialize_instance_for_display,
    serialize_node_for_display,
    serialize_pack_for_display,
    start_tree,
)
from flat.tree.description import describe, digest_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def test_the_client_needs_nothing_but_the_standard_library() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["pydantic", "orjson", "anyio", "jinja2", "yaml", "jsonschema", "typing_extensions"]))
from flat.tree.client import create_machine_contract, hydrate_client_node, is_command
node = hydrate_client_node({"commands": {"clear": {}}})
assert is_command(node["commands"]["clear"]({"a": 1}))
assert not [name for name in sys.modules if name.startswith("flat.") and name not in ("flat.tree", "flat.tree.client")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dry_node_is_data_with_full_schemas() -> None:
    dry = create_dry_client_node(desk)
    assert json.loads(json.dumps(dry)) == dry
    assert dry["validator"]["$schema"] == DIALECT
    assert dry["commands"]["clear"]["inputSchema"]["$schema"] == DIALECT
    assert [pack["name"] for pack in dry["packs"]] == ["likes"]
    assert "state" not in dry["packs"][0]


def test_a_dry_instance_has_its_states_and_no_children() -> None:
    dry = create_dry_client_instance(start_tree(charter, tree(watcher())))
    assert sorted(dry) == ["id", "node", "packStates", "state"]


def test_hydrated_commands_make_invocations() -> None:
    node = hydrate_client_node(create_dry_client_node(desk))
    assert node["commands"]["clear"]({"n": 1}) == {"type": "command", "name": "clear", "input": {"n": 1}}
    assert node["commands"]["clear"](n=1)["input"] == {"n": 1}
    instance = hydrate_client_instance(create_dry_client_instance(tree()))
    assert instance["node"]["commands"]["clear"]()["input"] == {}


# -- display ----------------------------------------------------------------------


def test_a_displayed_tree_is_spelled_out() -> None:
    waits = watcher().having(suspended=SuspendInfo(suspend_id="s", reason="why", suspended_at="now"))
    shown = serialize_instance_for_display(start_tree(charter, tree(waits)), charter)
    assert json.loads(json.dumps(shown)) == shown
    node = shown["node"]
    assert (node["name"], node["packNames"]) == ("desk", ["likes"])
    assert node["transitions"] == {"watch": "(code)", "billing": "(code)", "watch_too": "fare_watch.report"}
    assert node["validator"]["__schema"] == DIALECT
    assert shown["packs"][0]["instructions"] == "Count in EUR."
    assert shown["packs"][0]["instructionsComputed"] is True
    child = shown["children"][0]
    assert child["node"]["worker"] is True
    assert child["suspended"] == {"suspendId": "s", "reason": "why", "suspendedAt": "now"}


def test_an_inline_node_is_marked_and_targets_are_named() -> None:
    node = Node(
        "x",
        dict,
        name="mine",
        transitions={"go": SerialTransition(desk, "Go")},
        executor_config={"max_tokens": 3},
    )
    shown = serialize_node_for_display(node, charter)
    assert shown["name"] == "(inline) mine"
    assert shown["transitions"] == {"go": "desk"}
    assert shown["executorConfig"] == {"maxTokens": 3}


def test_what_cannot_be_shown_does_not_break_the_rest() -> None:
    pack = Pack("p", instructions=lambda state: state["nothing"])
    assert "cannot be computed" in serialize_pack_for_display(pack, {})["instructions"]
    assert serialize_pack_for_display(likes, {"currency": "NOK"})["instructions"] == "Count in NOK."


# -- contracts --------------------------------------------------------------------

CONTRACT = create_machine_contract([("desk", "clear"), ("likes", "reset"), ("halt",)])


def test_handles_are_reached_by_scope_and_name() -> None:
    handle = CONTRACT.commands.desk.clear
    assert (handle.scope, handle.name) == ("desk", "clear")
    assert CONTRACT.commands.halt.scope is None
    with pytest.raises(AttributeError, match="it has: desk, halt, likes"):
        _ = CONTRACT.commands.nowhere
    with pytest.raises(AttributeError):
        handle.name = "x"


def test_a_broken_contract_lists_every_missing_command() -> None:
    with pytest.raises(CharterMismatch) as caught:
        assert_machine_contract(CONTRACT, charter)
    assert caught.value.code == "contract_violation"
    assert [path for path, _, _ in caught.value.problems] == ["likes.reset", "halt"]
    assert_machine_contract(create_machine_contract([("desk", "clear"), ("clear",)]), charter)


def test_a_command_is_found_on_the_active_node_or_a_pack_of_the_root() -> None:
    shown = serialize_instance_for_display(start_tree(charter, tree(watcher())), charter)
    assert find_command(shown, CONTRACT.commands.desk.clear) is not None
    assert find_command(shown, CONTRACT.commands.halt) is None
    wrong = create_machine_contract([("fare_watch", "clear")]).commands.fare_watch.clear
    assert find_command(shown, wrong) is None
    reset = Command("reset", execute=lambda given: command_result())
    node = Node("x", dict, packs=[Pack("likes", commands=[reset])], initial_state={})
    within = Charter("c", nodes={"n": node})
    packed: Any = serialize_instance_for_display(start_tree(within, Instance(node)), within)
    assert find_command(packed, CONTRACT.commands.likes.reset) is not None


# -- the description --------------------------------------------------------------


def test_a_charter_describes_itself_as_one_document_with_a_hash() -> None:
    document = describe(charter)
    assert json.loads(json.dumps(document)) == document
    assert sorted(document["nodes"]) == ["billing", "desk", "fare_watch"]
    assert document["nodes"]["desk"]["commands"]["clear"]["inputSchema"]["type"] == "object"
    assert document["packs"]["likes"]["instructions"] is None
    assert document["hash"].startswith("sha256:")
    assert charter.describe() == document


def test_the_hash_follows_what_a_charter_says_and_nothing_else() -> None:
    def make(text: str, name: str = "c") -> Charter:
        return Charter(name, nodes={"a": Node(text, dict, name="a"), "w": fare_watch})

    assert digest_of(make("x")) == digest_of(make("x"))
    assert digest_of(make("x")) != digest_of(make("y"))
    assert digest_of(make("x")) != digest_of(make("x", "d"))
