"""Suspended instances, resumes and commands; and sessions that other processes go on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from running import charter, desk, executor, machine, roles, steps, told, worker

from flat.errors import TreeError
from flat.runtime.runtime import Runtime
from flat.runtime.trees import TreeMachine, create_machine, open_machine, run_command
from flat.testing.clock import VirtualClock
from flat.testing.executor import call, say
from flat.tree import Charter, Instance, Node, Suspend, suspend, transition, user_message
from flat.tree.changes import Suspended
from flat.tree.messages import command_item, resume_item
from flat.tree.run_intake import inbox_channel, resume_channel

pytestmark = pytest.mark.anyio

WAIT = say("", call("transition", to="wait", reason=""))


async def suspended(*more: Any) -> TreeMachine[Any]:
    found = machine(WAIT, *more)
    await steps(found, "Hi")
    return found


async def test_a_primary_that_suspends_itself_gives_two_steps() -> None:
    found = await steps(machine(WAIT), "Hi")
    assert told(found) == [("suspend", False), ("awaiting_resume", True)]
    assert found[1].suspended_instances == (
        {"instanceId": "r", "suspendId": "s1", "reason": "Please confirm", "metadata": {"price": 7}},
    )
    assert found[1].history == []


async def test_the_time_of_a_suspension_is_kept_in_the_record_and_in_the_tree() -> None:
    waiting = await suspended()
    info = waiting.instance.suspended
    assert info is not None
    (record,) = [m.items for m in waiting.history if isinstance(m.items, Suspended)]
    assert info.suspended_at
    assert record.suspend_info == info
    assert waiting.status == "awaiting_resume"


async def test_a_message_to_a_suspended_tree_is_kept_and_answered_by_nobody() -> None:
    waiting = await suspended()
    found = await steps(waiting, "Hello?")
    assert told(found) == [("awaiting_resume", True)]
    assert roles(found[0].history) == ["user:Hello?"]


async def test_a_resume_without_payload_is_one_command_step() -> None:
    waiting = await suspended("Thanks")
    found = await steps(waiting, resume_item("r", "s1"))
    assert told(found) == [("command", False)]
    assert roles(found[0].history)[0] == "resume"
    assert waiting.instance.suspended is None
    assert told(await steps(waiting, "Now?")) == [("end_turn", True)]


async def test_a_resume_with_payload_starts_inference() -> None:
    waiting = await suspended("Thanks")
    found = await steps(waiting, resume_item("r", "s1", "yes, buy"))
    assert told(found) == [("command", False), ("end_turn", True)]
    assert "yes, buy" in str(executor(waiting).requests[-1].messages)


async def test_a_resume_does_not_lose_the_rest_of_its_batch() -> None:
    waiting = await suspended("Thanks")
    found = await steps(waiting, ["and hurry", resume_item("r", "s1")])
    assert told(found) == [("command", False), ("end_turn", True)]
    assert "and hurry" in str(executor(waiting).requests[-1].messages)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (resume_item("x", "s1"), "unknown_instance"),
        (resume_item("r", "s2"), "suspend_id_mismatch"),
    ],
)
async def test_a_wrong_resume_is_raised_and_changes_nothing(item: Any, code: str) -> None:
    waiting = await suspended()
    with pytest.raises(TreeError) as caught:
        await steps(waiting, item)
    assert caught.value.code == code
    assert waiting.status == "awaiting_resume"


async def test_resuming_what_does_not_wait_is_raised() -> None:
    with pytest.raises(TreeError, match="not suspended"):
        await steps(machine("Hi"), resume_item("r", "s1"))


async def test_a_suspended_worker_does_not_park_its_working_sibling() -> None:
    both = create_machine(
        charter(
            {
                "desk": ["Thanks"],
                "worker": [WAIT, "never"],
                "helper": [say("", call("note", text="n")), "Ready."],
            }
        ),
        Instance(
            desk,
            {},
            [Instance(worker, {}, id="w"), Instance(charter("x").nodes["helper"], {}, id="h")],
            id="r",
        ),
    )
    found = await steps(both, "Hi")
    assert told(found) == [("tool_use", False), ("cede", True)]
    assert [c.id for c in both.instance.children] == ["w"]
    more = await steps(both, resume_item("w", "s1", "go"))
    assert told(more)[-1] == ("end_turn", True)


# -- commands ---------------------------------------------------------------------------


async def test_a_command_changes_the_state_and_asks_no_model() -> None:
    office = machine("never")
    run = await run_command(office, "rename", {"name": "North"})
    assert run.result == {"success": True, "value": {"named": "North"}}
    assert run.machine.instance.state == {"name": "North"}
    assert executor(office).requests == []
    assert roles(office.history) == ["command:", "state"]


async def test_a_command_that_fails_changes_nothing() -> None:
    office = machine("never")
    run = await run_command(office, "crash")
    assert run.result == {"success": False, "error": "stopped", "code": "command_failed"}
    assert office.instance.state == {}


async def test_an_unknown_command_is_a_failure_and_recorded() -> None:
    office = machine("never")
    run = await run_command(office, "renam", {"name": "x"})
    assert run.result["code"] == "command_not_found"
    assert "rename" in run.result["error"]
    assert roles(office.history) == ["command:"]


async def test_a_command_with_a_known_client_id_is_not_run_again() -> None:
    office = machine("never")
    first = await run_command(office, "rename", {"name": "North"}, client_id="k1")
    again = await run_command(office, "rename", {"name": "South"}, client_id="k1")
    assert again.result == first.result
    assert office.instance.state == {"name": "North"}
    assert roles(office.history) == ["command:", "state"]


async def test_a_queued_command_runs_before_the_model_is_asked() -> None:
    office = machine("Hello")
    office.enqueue(["Hi", command_item("rename", {"name": "North"}, client_id="k1")])
    found = await steps(office)
    assert told(found) == [("command", False), ("end_turn", True)]
    assert found[0].settled == ["k1"]
    assert found[0].command_result == {"success": True, "value": {"named": "North"}}
    assert "North" in str(executor(office).requests[0].messages)


async def test_a_command_may_cede_and_its_content_is_delivered() -> None:
    office = machine("never", children=[Instance(worker, {}, id="w")])
    run = await run_command(office, "leave", instance_id="w")
    assert run.result == {"success": True, "value": "by command"}
    assert office.instance.children == ()
    assert roles(office.history) == ["command:", "cede", "user:by command"]


async def test_a_command_may_resume() -> None:
    waiting = await suspended("Thanks")
    found = await steps(waiting, command_item("go_on"))
    assert told(found) == [("command", False), ("end_turn", True)]
    assert "approved" in str(executor(waiting).requests[-1].messages)


async def test_a_command_during_a_run_waits_for_the_step() -> None:
    office = machine("x")

    async def answer_later() -> None:
        run = await run_command(office, "rename", {"name": "North"})
        assert run.applied is False

    from flat.testing.executor import Later

    executor(office).scripts[""] = (Later(answer_later, "first"), "second")
    found = await steps(office, "Hi")
    assert office.instance.state == {"name": "North"}
    assert told(found) == [("end_turn", False), ("command", True)]
    assert [m for step in found for m in step.history] == office.history


async def test_a_record_from_outside_changes_the_tree_and_a_wrong_one_is_told() -> None:
    office = machine("Hello")
    patch = {"role": "instance", "items": {"kind": "state", "instanceId": "r", "patch": {"a": 1}}}
    wrong = {"role": "instance", "items": {"kind": "state", "instanceId": "x", "patch": {"a": 1}}}
    found = await steps(office, [patch, wrong, "Hi"])
    assert office.instance.state == {"a": 1}
    assert [r["code"] for r in found[0].refused] == ["unknown_instance"]


# -- sessions in a store -------------------------------------------------------------------


def stored(runtime: Runtime, answers: Sequence[Any]) -> TreeMachine[Any]:
    return create_machine(
        charter(*answers), Instance(desk, {}, id="r"), runtime=runtime, execution_id="session-1"
    )


async def test_another_process_goes_on_with_a_session(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'flat.db'}"
    async with Runtime(url) as runtime:
        await steps(stored(runtime, [say("", call("note", text="a")), "First"]), "Hi")
    async with Runtime(url) as runtime:
        session = await open_machine(charter("Second"), runtime, "session-1")
        assert session.instance.state == {"notes": ["a"]}
        found = await steps(session, "Again")
        assert told(found) == [("end_turn", True)]
        assert roles(session.history)[-2:] == ["user:Again", "assistant:Second"]
        request = session.charter.executor.requests[0]  # type: ignore[union-attr]
        assert "First" in str(request.messages)


async def test_a_parked_session_is_resumed_by_a_signal_and_a_dispatcher(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'flat.db'}"
    async with Runtime(url) as runtime:
        await steps(stored(runtime, [WAIT]), "Hi")
        (execution,) = await runtime.list(status="waiting")
        assert execution.kind == "tree"
    async with Runtime(url) as runtime:
        session = stored(runtime, ["Bought"])
        runtime.machines = {"office": session.machine}
        await runtime.signal(resume_channel("session-1", "s1"), {"approved": True})
        await runtime.dispatcher().dispatch_once()
        await session.load()
        assert roles(session.history)[-1] == "assistant:Bought"
        assert "approved" in str(executor(session).requests[0].messages)


async def test_messages_in_the_inbox_are_answered_when_somebody_runs_the_session() -> None:
    office = machine("Hello")
    await office.send("Hi", signal_id="m1")
    await office.send("Hi", signal_id="m1")
    await office.wait_for_queue()
    await steps(office)
    await steps(office)
    assert roles(office.history)[-2:] == ["user:Hi", "assistant:Hello"]
    assert roles(office.history).count("user:Hi") == 1


async def test_a_channel_by_name_resumes_too() -> None:
    @transition("Ask for approval")
    def ask() -> Suspend:
        return suspend("Approve", suspend_id="s9", channel="approval/task-001")

    node = Node("Ask.", {"type": "object"}, name="asker", initial_state={}, transitions=[ask])
    scripted = charter(say("", call("transition", to="ask", reason="")), "Approved")
    asker = create_machine(
        Charter("asking", executor=scripted.executor, nodes=[node]), Instance(node, {}, id="r")
    )
    await steps(asker, "Hi")
    await asker.runtime.signal("approval/task-001", {"by": "Mira"})
    await asker.runtime.resume(asker.execution_id, asker.machine)
    await asker.load()
    assert asker.status in ("idle", "awaiting_resume")
    assert "Mira" in str(executor(asker).requests[-1].messages)


@pytest.mark.parametrize(
    ("on_timeout", "expected"), [("resume", "assistant:Too late"), ("keep", "suspend"), ("cede", "cede")]
)
async def test_a_wait_that_is_over_is_handled_as_it_says(on_timeout: Any, expected: str) -> None:
    @transition("Ask for approval")
    def ask() -> Suspend:
        return suspend("Approve", suspend_id="s9", timeout=60, on_timeout=on_timeout)

    node = Node("Ask.", {"type": "object"}, name="asker", worker=True, transitions=[ask])
    scripted = charter(
        {"asker": [say("", call("transition", to="ask", reason="")), "Too late"], "desk": ["Ok"]}
    )
    clock = VirtualClock()
    from flat.backends.memory.store import MemoryStore

    runtime = Runtime(MemoryStore(), clock=clock).lent()
    asking = Charter(
        "asking", executor=scripted.executor, nodes=[desk, worker, node, *scripted.nodes.values()][2:]
    )
    root = Instance(asking.nodes["desk"], {}, [Instance(node, {}, id="a")], id="r")
    asker = create_machine(asking, root, runtime=runtime)
    await steps(asker, "Hi")
    clock.advance(61)
    await runtime.resume(asker.execution_id, asker.machine)
    await asker.load()
    found = roles(asker.history)
    assert expected in found
    if on_timeout == "keep":
        assert asker.instance.children[0].suspended is not None
        assert found[-1] == "suspend"


async def test_the_inbox_channel_is_named_after_the_execution() -> None:
    assert inbox_channel("e1") == "tree/e1/inbox"


async def test_a_session_waits_on_all_its_channels() -> None:
    waiting = await suspended()
    outcome = await waiting.runtime.resume(waiting.execution_id, waiting.machine)
    id_ = waiting.execution_id
    assert outcome.waiting_on == (f"tree/{id_}/resume/s1", f"tree/{id_}/inbox")


async def test_a_failed_model_call_is_tried_again_as_the_executor_says() -> None:
    from flat.tree import StandardExecutor
    from flat.tree.run import _retry

    assert _retry(StandardExecutor(retry={"backoffs": [1, 2], "jitter": 0})) == {
        "backoffs": (1.0, 2.0),
        "jitter": 0.0,
        "only_retryable": False,
    }


async def test_addressing_nobody_is_kept_in_the_history() -> None:
    office = machine("Hello")
    await steps(office, user_message("psst", to="nobody"))
    assert roles(office.history) == ["user:psst", "assistant:Hello"]
