"""A charter as the engine meets it: plain data in, plain data out, between any two effects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from travel import charter, desk, fare_watch, tree, watcher

from flat.errors import CharterMismatch, TreeError
from flat.tree import Charter, Instance, Node, Output, StandardExecutor, ToolCall, active_leaves, user_message
from flat.tree.calls import step_messages
from flat.tree.executor import effective_config
from flat.tree.instance import path_to
from flat.tree.lower import TreeBinding, node_plan, outcome_data, outcome_from_data, plan, tool_settings
from flat.tree.messages import Source, message_data
from flat.tree.request import answer_message

pytestmark = pytest.mark.anyio

BINDING = TreeBinding(charter)


def stored(data: Any) -> Any:
    """What a store gives back."""
    return json.loads(json.dumps(data))


class Session:
    """A tree and its history as data, stored and read again between any two effects."""

    def __init__(self, root: Instance[Any]) -> None:
        self.tree = stored(BINDING.started(root))
        self.history: list[Any] = []

    async def step(self, answers: Mapping[str, Any]) -> list[str]:
        """One round: every active leaf answers as scripted by its id. The ids of those who ran."""
        leaves = active_leaves(BINDING.tree(self.tree))
        ran = []
        for leaf in leaves:
            answer = answers.get(leaf.instance.id)
            if answer is None:
                continue
            request = BINDING.request(self.tree, leaf.instance.id, self.history)
            assert request.messages[-1]["role"] != "assistant"
            await self.act(leaf.instance.id, *answer)
            ran.append(leaf.instance.id)
        return ran

    async def act(self, id: str, text: str, *calls: tuple[str, Any]) -> None:
        asked = [
            {"id": f"{id}{i}", "name": name, "arguments": given} for i, (name, given) in enumerate(calls)
        ]
        source = Source(instance_id=id)
        node = path_to(BINDING.tree(self.tree), id)[-1].node
        self.history.append(message_data(answer_message(node, text, asked, source=source)))
        outcomes, patches, moves = {}, [], []
        for call in sorted(asked, key=lambda c: str(c["name"]).startswith("transition")):
            data = await BINDING.call(self.tree, id, call, effect_id=f"e/{call['id']}")
            assert data is not None
            outcome = outcome_from_data(stored(data))
            assert stored(outcome_data(outcome)) == stored(data)
            outcomes[str(call["id"])] = outcome
            (moves if str(call["name"]).startswith("transition") else patches).extend(outcome.changes)
            changed, refused = BINDING.after(self.tree, data.get("changes", ()))
            assert not refused
            self.tree = stored(changed)
        called = [ToolCall(str(c["id"]), str(c["name"])) for c in asked]
        self.history += [message_data(m) for m in step_messages(called, outcomes, patches, moves, source)]

    def say(self, text: str) -> None:
        self.history.append(message_data(user_message(text)))


async def test_a_worker_is_started_works_and_reports_with_a_store_between_any_two_effects() -> None:
    session = Session(tree(traveller="Mira"))
    session.say("Watch Oslo")
    assert await session.step(
        {"r": ("", ("add_leg", {"city": "Oslo"}), ("transition_watch", {"leg": "Oslo", "reason": "asked"}))}
    ) == ["r"]
    (child,) = session.tree["children"]
    assert child["id"] == "e/r1.1"
    assert child["brief"] == "Watch Oslo for Mira"
    assert session.tree["state"] == {"legs": ["Oslo"], "traveller": "Mira"}
    request = BINDING.request(session.tree, child["id"], session.history)
    assert request.messages == [{"role": "user", "content": "Watch Oslo for Mira"}]
    assert await session.step({child["id"]: ("", ("lookup_fare", {"leg": "Oslo"}))}) == [child["id"]]
    assert await session.step({child["id"]: ("", ("transition", {"to": "report", "reason": ""}))}) == [
        child["id"]
    ]
    assert "children" not in session.tree
    assert [leaf.instance.id for leaf in active_leaves(BINDING.tree(session.tree))] == ["r"]


async def test_ids_of_new_instances_follow_from_the_effect() -> None:
    born = stored(BINDING.started(tree()))
    call = {"id": "c", "name": "transition_watch", "arguments": {"leg": "Oslo", "reason": ""}}
    first = await BINDING.call(born, "r", call, effect_id="0/3/converse.c")
    again = await BINDING.call(born, "r", call, effect_id="0/3/converse.c")
    assert first is not None
    assert first == again
    assert first["changes"][0]["children"][0]["id"] == "0/3/converse.c.1"


async def test_a_command_crosses_the_seam_as_data() -> None:
    born = stored(BINDING.started(tree(legs=["Oslo"])))
    outcome = await BINDING.command(born, {"type": "command", "name": "clear", "input": {}})
    assert stored(outcome) == {
        "success": True,
        "value": "cleared",
        "changes": [{"kind": "state", "instanceId": "r", "patch": {"legs": []}}],
    }
    failed = await BINDING.command(born, {"type": "command", "name": "clear", "instanceId": "x"})
    assert (failed["success"], failed["code"]) == (False, "unknown_instance")


async def test_a_refused_change_is_told_with_its_index() -> None:
    born = stored(BINDING.started(tree()))
    fine = {"kind": "state", "instanceId": "r", "patch": {"traveller": "Mira"}}
    after, refused = BINDING.after(born, [fine, {"kind": "cede", "instanceId": "x"}])
    assert after["state"]["traveller"] == "Mira"
    assert [(index, error.code) for index, error in refused] == [(1, "unknown_instance")]


async def test_a_request_is_complete() -> None:
    node = Node(
        "Plan.",
        dict,
        name="planner",
        output=Output({"type": "object", "properties": {"days": {"type": "integer"}}}),
        executor_config={"model": "small", "temperature": 0},
        initial_state={},
    )
    within = Charter(
        "c", executor=StandardExecutor(model="big", max_tokens=9, api_key="secret"), nodes={"p": node}
    )
    binding = TreeBinding(within)
    born = stored(binding.started(Instance(node, id="r")))
    request = binding.request(born, "r", [message_data(user_message("go"))], current_step=50, max_steps=50)
    assert request.system.stable == "Plan."
    assert request.system.volatile.endswith("without calling any tool.")
    assert request.settings == {"model": "small", "max_tokens": 9, "temperature": 0}
    assert request.output_schema == {"type": "object", "properties": {"days": {"type": "integer"}}}
    assert request.messages == [{"role": "user", "content": "go"}]
    assert request.tools[0]["function"]["name"] == "updateState"
    assert "secret" not in repr(request)


async def test_a_request_tells_the_engine_of_every_tool_that_it_offers() -> None:
    born = stored(BINDING.started(tree(watcher())))
    request = BINDING.request(born, "w", [])
    assert request.tool_settings == {
        "lookup_fare": {"in_doubt": "retry"},
        "add_leg": {"in_doubt": "fail"},
        "goodbye": {"in_doubt": "fail", "terminal": True},
    }


async def test_a_tree_that_cannot_be_is_refused_before_it_is_born() -> None:
    with pytest.raises(TreeError):
        BINDING.started(Instance(fare_watch, {}, id="r"))
    with pytest.raises(CharterMismatch):
        BINDING.tree({"id": "r", "node": {"ref": "gone"}, "state": {}})


def test_the_plan_is_data_with_a_digest() -> None:
    made = plan(charter)
    assert (made.name, made.digest) == ("travel", charter.describe()["hash"])
    assert made.nodes["fare_watch"] == node_plan(charter, fare_watch, "fare_watch")
    assert made.nodes["fare_watch"].worker
    assert made.nodes["desk"].tools["goodbye"] == {"in_doubt": "fail", "terminal": True}
    assert made.nodes["desk"].tools["lookup_fare"] == {"in_doubt": "retry"}
    assert tool_settings(charter, fare_watch, [desk])["add_leg"] == {"in_doubt": "fail"}


def test_settings_fall_back_to_the_executor() -> None:
    assert effective_config(StandardExecutor(), None).model == "claude-sonnet-4-5"

    class Own:
        async def call(self, request: Any) -> Any: ...

    assert effective_config(Own(), None).model is None
    assert watcher().node is fare_watch
