"""Looking at a machine, watching it, cancelling and forking it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from running import ANY, charter, desk, machine, results, steps, told, worker

from flat.errors import TreeError
from flat.runtime.runtime import Runtime
from flat.runtime.trees import create_machine, deserialize_machine, open_machine, run_machine
from flat.testing.executor import Later, ScriptedExecutor, call, say
from flat.tree import Charter, Instance, Message, Node, Pack, resume_item, serialize_instance, tool

pytestmark = pytest.mark.anyio


async def test_a_machine_says_what_it_is_doing() -> None:
    office = machine(say("", call("transition", to="wait")), say("", call("transition_report", text="bye")))
    assert office.status == "idle"
    office.enqueue("Hello")
    assert office.status == "ready"
    async with run_machine(office) as running:
        await anext(running)
        assert office.status == "running"
        async for _ in running:
            pass
    assert office.status == "awaiting_resume"
    await steps(office, resume_item("r", "s1", "go on"))
    assert (office.status, office.result) == ("finished", "bye")
    with pytest.raises(TreeError, match="begin another one to go on"):
        await steps(office, "More")


class Watching:
    """A tracer that notes what it sees, and whether it ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.open: list[str] = []
        self.ended = 0

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:
        assert attributes.get("effect_id") or attributes["execution_id"]
        self.seen.append(name if name != "step" else f"step {attributes['number']} of {attributes['leaves']}")
        self.open.append(name)
        yield
        assert self.open.pop() == name
        self.ended += 1


async def test_a_tracer_sees_the_run_its_steps_and_every_call_in_them() -> None:
    watching = Watching()
    office = machine(
        say("", call("note", text="a"), call("fail"), call("transition_hire", task="t")),
        say("", call("transition_report", text="done")),
        "Bye",
    )
    await steps(office, "Go", tracer=watching)
    assert watching.seen == [
        "machine office", "step 1 of 1", "model desk", "tool note", "tool fail", "tool transition_hire",
        "step 2 of 1", "model worker", "tool transition_report", "step 3 of 1", "model desk",
    ]  # fmt: skip
    assert watching.ended == len(watching.seen)


async def test_cancelling_stops_a_tool_that_runs_and_ends_the_tree(tmp_path: Path) -> None:
    began = anyio.Event()

    @tool("Hang")
    async def hang() -> str:
        began.set()
        await anyio.sleep_forever()
        return ""

    node = Node("Hang.", ANY, name="hanger", initial_state={}, tools=[hang])
    hanging = Charter("c", executor=ScriptedExecutor(say("", call("hang"))), nodes=[node])
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        office = create_machine(hanging, Instance(node, {}, id="r"), runtime=runtime, execution_id="t")
        async with anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(Exception, match="cancelled"):
                    await steps(office, "Go")

            group.start_soon(run)
            await began.wait()
            assert await runtime.cancel("t", "enough")
        assert (await runtime.inspect("t")).status == "cancelled"


async def test_a_run_that_is_cancelled_by_its_caller_is_continued_by_the_next() -> None:
    asked: list[int] = []

    def first_hangs() -> Any:
        asked.append(1)
        return anyio.sleep_forever() if len(asked) == 1 else anyio.lowlevel.checkpoint()

    office = machine(say("", call("note", text="a")), Later(first_hangs, "Done"), Later(first_hangs, "Done"))
    with anyio.move_on_after(0.05) as scope:
        await steps(office, "Go")
    assert scope.cancelled_caught
    assert office.instance.state == {"notes": ["a"]}
    found = await steps(office)
    assert told(found) == [("end_turn", True)]
    assert found[-1].response == "Done"
    assert office.instance.state == {"notes": ["a"]}


async def test_a_fork_goes_its_own_way_and_leaves_the_original_alone(tmp_path: Path) -> None:
    answers = say("", call("note", text="a")), "One", say("", call("note", text="b")), "Two"
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        office = machine(*answers, runtime=runtime, execution_id="t")
        await steps(office, "First")
        forked = await runtime.fork("t", new_id="u")
        await steps(office, "Second")
        other = await open_machine(charter(say("", call("note", text="c")), "Three"), runtime, forked)
        assert [m.text for m in other.history if m.role == "user" and m.text] == ["First"]
        found = await steps(other, "Another")
        assert found[-1].response == "Three"
        assert other.instance.state == {"notes": ["a", "c"]}
        assert (await open_machine(charter("x"), runtime, "t")).instance.state == {"notes": ["a", "b"]}


async def test_a_fork_may_begin_after_any_step_and_with_other_instructions(tmp_path: Path) -> None:
    prompts: list[str] = []

    def answer(request: Any) -> Any:
        prompts.append(str((request.messages or [])[0]["content"]))
        said = sum(m["role"] == "assistant" for m in request.messages or ())
        return say("", call("note", text=str(said))) if said < 2 else say("Done")

    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        office = machine(answer, runtime=runtime, execution_id="t")
        found = await steps(office, "Go")
        assert office.instance.state == {"notes": ["0", "1"]}
        other = await office.fork(found[0].id, edit={"r": "Plan another way."})
        assert other.instance.state == {"notes": ["0"]}
        again = await steps(other)
        assert again[-1].response == "Done"
        assert "Plan another way." in prompts[-1]
        assert other.instance.state == {"notes": ["0", "1"]}
        assert office.instance.node.instructions == "Plan."
        with pytest.raises(TreeError, match=r'no step "9\.9\.9"'):
            await office.fork("9.9.9")
        with pytest.raises(TreeError, match='no instance "x"'):
            await office.fork(edit={"x": "?"})


async def test_packs_begin_when_a_stored_tree_without_them_is_loaded() -> None:
    notes = Pack("notes", initial_state={"all": []}, validator=ANY)
    node = Node("x", ANY, name="noting", initial_state={}, packs=[notes])
    noting = Charter("c", executor=ScriptedExecutor("Hi"), nodes=[node])
    data = serialize_instance(Instance(node, {}, id="r"), noting)
    data.pop("packInstances", None)
    loaded = deserialize_machine(noting, {"instance": data, "history": []})
    await steps(loaded, "Hello")
    assert loaded.instance.pack_states == {"notes": {"all": []}}


async def test_nothing_is_kept_of_workers_that_are_gone() -> None:
    hired = [
        say("", call("transition_hire", task="t"), call("note", text="n")),
        say("", call("note", text="w")),
        say("", call("transition_report", text="done")),
        "Bye",
    ]
    office = machine(*hired)
    await steps(office, "Go")
    context = (await office.runtime.inspect(office.execution_id)).root.context
    assert "counts" not in context
    assert worker.name not in str(context["tree"])


async def test_a_tool_that_wrote_nothing_leaves_no_record() -> None:
    office = machine(say("", call("finish")), "Bye")
    found = await steps(office, "Go")
    assert [m.role for m in found[0].history] == ["user", "assistant", "user"]
    assert results(found[0])[0]["content"] == "finished"


def test_the_desk_is_the_one_of_the_charter() -> None:
    assert charter("x").nodes["desk"] is desk


async def test_an_answer_on_its_way_can_be_looked_at_and_is_announced_at_its_beginning_and_end() -> None:
    announced: list[Message] = []
    seen: list[str] = []
    office = machine("Hello there", on_message_enqueue=announced.append)

    def look(event: Any) -> None:
        seen.extend(message.text for message in office.streaming.values())

    await steps(office, "Go", on_message_stream=look)
    answers = [message for message in announced if message.role == "assistant"]
    assert [(m.text, (m.metadata.stream or {})["state"]) for m in answers] == [
        ("", "streaming"), ("Hello there", "complete"),
    ]  # fmt: skip
    assert len({m.metadata.message_id for m in answers}) == 1
    assert seen == ["", "Hello", "Hellothere"]  # the pieces of this executor are the words
    assert office.streaming == {}
    assert [m.metadata.stream for m in office.history] == [None, None]


async def test_an_answer_that_breaks_off_is_announced_as_such() -> None:
    announced: list[Message] = []
    office = machine(RuntimeError("cut off"), "Later", on_message_enqueue=announced.append)
    with pytest.raises(RuntimeError, match="cut off"):
        await steps(office, "Go", on_message_stream=lambda event: None)
    assert [(m.metadata.stream or {}).get("state") for m in announced if m.role == "assistant"] == [
        "streaming", "error",
    ]  # fmt: skip
    assert office.streaming == {}
