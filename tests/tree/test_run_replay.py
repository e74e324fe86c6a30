"""The log is the truth: applying its records to the first tree gives the stored one, and saving loses nothing."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import charter, desk, kept, machine, steps, worker

from flat.runtime.runtime import Runtime
from flat.runtime.trees import (
    TreeMachine,
    create_machine,
    deserialize_machine,
    run_command,
    serialize_machine,
)
from flat.testing.executor import call, say
from flat.tree import Instance, replayed
from flat.tree.lower import TreeBinding
from flat.tree.messages import command_item, resume_item

pytestmark = pytest.mark.anyio

CALLS = st.sampled_from(
    [
        call("note", id="1", text="a"),
        call("note", id="2", text="b"),
        call("fail", id="3"),
        call("finish", id="4"),
        call("updateState", id="5", patch={"x": 1}),
        call("updateState", id="6"),
        call("transition_hire", id="7", task="t", reason=""),
        call("transition_hire_behind", id="8", task="t", reason=""),
        call("transition", id="9", to="hire_two", reason=""),
        call("transition", id="10", to="deepen", reason=""),
        call("transition", id="11", to="deepen_twice", reason=""),
        call("transition", id="12", to="bill", reason=""),
        call("transition_report", id="13", text="r", reason=""),
        call("transition", id="14", to="wait", reason=""),
        call("transition", id="15", to="broken", reason=""),
        call("nothing", id="16"),
    ]
)
ANSWERS = st.builds(
    lambda text, calls, finish: say(text, *calls, finish=finish),
    st.sampled_from(["", "ok"]),
    st.lists(CALLS, max_size=3, unique_by=lambda one: one.id),
    st.sampled_from([None, None, None, "length", "pause"]),
)
INPUTS = st.lists(
    st.sampled_from(
        ["hello", command_item("rename", {"name": "n"}), command_item("leave"), resume_item("r", "s1")]
    ),
    min_size=1,
    max_size=2,
)


async def played(script: list[Any], inputs: list[list[Any]]) -> TreeMachine[Any]:
    office = create_machine(
        charter(*script),
        Instance(desk, {}, [Instance(worker, {}, id="w"), Instance(kept, {}, id="k")], id="r"),
    )
    for said in inputs:
        try:
            await steps(office, said, max_steps=6)
        except Exception as error:
            if getattr(error, "code", "") not in ("step_limit", "not_suspended", "finished"):
                raise
    return office


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(ANSWERS, min_size=1, max_size=8), inputs=st.lists(INPUTS, min_size=1, max_size=3))
def test_the_records_of_the_log_rebuild_the_stored_tree(script: list[Any], inputs: list[list[Any]]) -> None:
    office = anyio.run(played, script, inputs)
    binding = TreeBinding(office.charter)
    first = Instance(desk, {}, [Instance(worker, {}, id="w"), Instance(kept, {}, id="k")], id="r")
    root = binding.tree(binding.started(first))
    changes: list[Any] = [m.items for m in office.history if m.role == "instance"]
    if office.status == "finished":  # the last record is the root's own end, which changes no tree
        changes.pop()
    assert binding.started(replayed(office.charter, root, changes)) == office.tree


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(ANSWERS, min_size=1, max_size=6), inputs=st.lists(INPUTS, min_size=1, max_size=2))
def test_every_call_that_was_made_has_its_result_right_behind(
    script: list[Any], inputs: list[list[Any]]
) -> None:
    office = anyio.run(played, script, inputs)
    for at, message in enumerate(office.history):
        items: Any = message.items
        if message.role != "assistant" or not isinstance(items, list):
            continue
        asked = [item["id"] for item in items if item["type"] == "tool_use"]
        answered = [
            item["tool_use_id"]
            for later in office.history[at + 1 : at + 6]
            for item in (later.items if isinstance(later.items, list) else ())
            if item["type"] == "tool_result"
        ]
        assert not asked or asked == answered[: len(asked)] or set(asked).isdisjoint(answered)


async def test_saving_and_loading_gives_the_same_machine() -> None:
    wait = say("", call("transition", to="wait", reason=""))
    office = machine({"worker": [wait], "desk": ["Hi"]}, children=[Instance(worker, {"task": "t"}, id="w")])
    await steps(office, "Hello")
    office.enqueue("later")
    data = json.loads(json.dumps(serialize_machine(office)))
    loaded = deserialize_machine(office.charter, data)
    assert serialize_machine(loaded) == data
    assert loaded.status == "ready"
    await steps(loaded, resume_item("w", "s1", "go on"))
    assert [m.text for m in loaded.history][: len(office.history)] == [m.text for m in office.history]


async def test_an_open_turn_survives_saving_and_loading() -> None:
    office = machine(RuntimeError("down"), "Back again")
    with pytest.raises(RuntimeError):
        await steps(office, "Hello")
    loaded = deserialize_machine(office.charter, json.loads(json.dumps(serialize_machine(office))))
    found = await steps(loaded)
    assert found[-1].response == "Back again"


async def test_a_long_session_writes_little_more_than_its_messages(tmp_path: Any) -> None:
    text = "x" * 1000
    url = f"sqlite:///{tmp_path / 'flat.db'}"
    async with Runtime(url) as runtime:
        office = create_machine(
            charter(text),
            Instance(desk, {"profile": "y" * 2000}, id="r"),
            runtime=runtime,
            execution_id="long",
        )
        for _ in range(60):
            await steps(office, text)
        store = runtime.opened()
        bodies = sum(len(body) for _, _, body in await store.bodies("long"))
        stored = await store.load("long")
        assert stored is not None
        log = sum(len(row) for row in stored.log)
    assert len(stored.log) == 120
    assert bodies < 0.75 * log


async def test_a_command_between_turns_is_part_of_the_log() -> None:
    office = machine("Hi")
    await steps(office, "Hello")
    await run_command(office, "rename", {"name": "n"})
    binding = TreeBinding(office.charter)
    changes: list[Any] = [m.items for m in office.history if m.role == "instance"]
    first = binding.tree(binding.started(Instance(desk, {}, id="r")))
    assert binding.started(replayed(office.charter, first, changes)) == office.tree
