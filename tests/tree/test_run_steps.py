"""What a step reports, and when a run ends."""

from __future__ import annotations

from typing import Any

import pytest
from running import (
    executor,
    helper,
    kept,
    machine,
    nudged,
    results,
    roles,
    short,
    steps,
    strict,
    told,
    worker,
)

from flat.agents.protocol import AgentRequest
from flat.errors import AgentFailed, ExecutionError, MachineBusy, TreeError
from flat.runtime.tree_steps import RunOptions
from flat.runtime.trees import create_machine, run_machine, run_machine_to_completion
from flat.testing.executor import call, say
from flat.tree import Charter, Instance, Node, user_message
from flat.tree.messages import ephemeral_message

pytestmark = pytest.mark.anyio


def child(node: Node[Any], id: str = "w", **state: Any) -> Instance[Any]:
    return Instance(node, state, id=id)


async def test_the_readme_example_prints_its_answer() -> None:
    class Answers:
        async def call(self, request: AgentRequest) -> str:
            return "Hello back!"

    greeter = Node("Greet the user.", {"type": "object"}, name="greeter", initial_state={})
    bot = create_machine(
        Charter("bot", executor=Answers(), nodes={"greeter": greeter}), {"instance": Instance(greeter, {})}
    )
    step = await run_machine_to_completion(bot, "Hello!")
    assert step.response == "Hello back!"


async def test_a_primary_that_answers_ends_the_turn() -> None:
    desk = machine("Hello")
    found = await steps(desk, "Hi")
    assert told(found) == [("end_turn", True)]
    assert roles(found[0].history) == ["user:Hi", "assistant:Hello"]
    assert found[0].response == "Hello"


async def test_tools_are_followed_by_another_step() -> None:
    desk = machine(say("Noting", call("note", text="a")), "Done")
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("end_turn", True)]
    assert roles(found[0].history) == ["user:Hi", "assistant:Noting", "state", "results"]
    assert found[0].instance.state == {"notes": ["a"]}
    assert desk.instance.state == {"notes": ["a"]}


async def test_the_histories_of_the_steps_are_the_history_of_the_machine() -> None:
    desk = machine(
        {
            "desk": [say("", call("transition_hire", task="x", reason="")), "Thanks"],
            "worker": [
                say("", call("note", text="n")),
                say("", call("transition_report", text="r", reason="")),
            ],
        }
    )
    found = await steps(desk, "Hi")
    more = await steps(desk, "Again")
    assert [m for step in [*found, *more] for m in step.history] == desk.history


async def test_a_second_call_of_a_response_sees_what_the_first_one_wrote() -> None:
    desk = machine(say("", call("note", id="1", text="a"), call("note", id="2", text="b")), "Done")
    found = await steps(desk, "Hi")
    assert desk.instance.state == {"notes": ["a", "b"]}
    assert roles(found[0].history)[-2:] == ["state", "results"]


async def test_a_terminal_tool_ends_the_turn_after_the_transition_was_taken() -> None:
    desk = machine(say("", call("finish", id="1"), call("transition", id="2", to="bill", reason="")))
    found = await steps(desk, "Hi")
    assert told(found) == [("end_turn", True)]
    assert desk.instance.node.name == "billing"


async def test_a_failing_tool_is_an_error_result() -> None:
    desk = machine(say("", call("fail")), "Sorry")
    found = await steps(desk, "Hi")
    (result,) = results(found[0])
    assert result["is_error"] is True
    assert "no paper" in result["content"]


async def test_a_broken_transition_is_an_error_result_and_the_leaf_goes_on() -> None:
    desk = machine(say("", call("transition", to="broken", reason="")), "Sorry")
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("end_turn", True)]
    (result,) = results(found[0])
    assert "the transition is broken" in result["content"]


async def test_only_the_first_transition_of_a_response_is_taken() -> None:
    desk = machine(
        say(
            "",
            call("transition", id="1", to="bill", reason=""),
            call("transition", id="2", to="deepen", reason=""),
        ),
        "Done",
    )
    found = await steps(desk, "Hi")
    first, second = results(found[0])
    assert "is_error" not in first
    assert "only one transition" in second["content"]
    assert desk.instance.node.name == "billing"
    assert desk.instance.children == ()


async def test_a_worker_is_started_works_and_its_result_comes_in_the_same_run() -> None:
    desk = machine(
        {
            "desk": [say("", call("transition_hire", task="x", reason="")), "Thanks"],
            "worker": [
                say("", call("note", text="n")),
                say("", call("transition_report", text="got it", reason="")),
            ],
        }
    )
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("tool_use", False), ("cede", False), ("end_turn", True)]
    assert found[2].cede_content == "got it"
    assert roles(found[2].history)[-2:] == ["cede", "user:got it"]
    assert executor(desk).asked == ["desk", "worker", "worker", "desk"]
    assert desk.instance.children == ()


async def test_a_worker_that_ends_its_turn_cedes_what_it_said_last() -> None:
    desk = machine(
        {"desk": [say("", call("transition_hire", task="x", reason="")), "Thanks"], "worker": ["It is 7."]}
    )
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("cede", False), ("end_turn", True)]
    assert found[1].cede_content == "It is 7."


async def test_a_nudged_worker_is_reminded_twice_and_then_cedes() -> None:
    desk = machine({"desk": ["Thanks"], "nudged": ["Hm.", "Hmm.", "Hmmm."]}, children=[child(nudged)])
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("tool_use", False), ("cede", False), ("end_turn", True)]
    assert executor(desk).asked == ["nudged", "nudged", "nudged", "desk"]


async def test_a_kept_worker_stays_and_the_turn_ends() -> None:
    desk = machine({"desk": ["never"], "kept": ["Here."]}, children=[child(kept)])
    assert told(await steps(desk, "Hi")) == [("end_turn", True)]
    assert [c.node.name for c in desk.instance.children] == ["kept"]


async def test_a_strict_worker_that_ends_its_turn_is_an_error() -> None:
    desk = machine({"desk": ["never"], "strict": ["Here."]}, children=[child(strict)])
    with pytest.raises(ExecutionError, match="ended its turn without ceding"):
        await steps(desk, "Hi")


async def test_a_worker_that_runs_out_of_its_steps_cedes_a_notice() -> None:
    desk = machine({"desk": ["Thanks"], "short": [say("", call("note", text="n"))]}, children=[child(short)])
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("cede", False), ("end_turn", True)]
    assert "after 2 steps" in found[1].cede_content


async def test_what_two_workers_hand_over_is_delivered_in_leaf_order() -> None:
    def hand_over(text: str) -> Any:
        return say("", call("transition_report", text=text, reason=""))

    desk = machine(
        {"desk": ["Thanks"], "worker": [hand_over("first")], "helper": [hand_over("second")]},
        children=[child(worker, "a"), child(helper, "b")],
    )
    found = await steps(desk, "Hi")
    assert roles(found[0].history) == [
        "user:Hi",
        *("assistant:", "results", "cede", "user:first"),
        *("assistant:", "results", "cede", "user:second"),
    ]
    assert told(found) == [("tool_use", False), ("end_turn", True)]


async def test_a_background_worker_works_beside_its_parent() -> None:
    desk = machine(
        {
            "desk": [
                say("", call("transition_hire_behind", task="x", reason="")),
                "While it works",
                "Got it",
            ],
            "worker": [say("", call("note", text="n")), "Ready."],
        }
    )
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("end_turn", False), ("cede", False), ("end_turn", True)]
    assert sorted(executor(desk).asked[1:3]) == ["desk", "worker"]


async def test_until_primary_ends_with_the_primary() -> None:
    desk = machine(
        {
            "desk": [say("", call("transition_hire_behind", task="x", reason="")), "While it works"],
            "worker": [say("", call("note", text="n"))],
        }
    )
    found = await steps(desk, "Hi", until="primary")
    assert told(found) == [("tool_use", False), ("end_turn", True)]


async def test_a_primary_child_answers_in_place_of_its_parent() -> None:
    desk = machine({"desk": [say("", call("transition", to="deepen", reason=""))], "inner": ["Inner here"]})
    found = await steps(desk, "Hi")
    assert told(found) == [("tool_use", False), ("end_turn", True)]
    assert found[-1].response == "Inner here"


async def test_a_root_that_cedes_finishes_the_machine() -> None:
    desk = machine(say("", call("transition_report", text="over", reason="")))
    found = await steps(desk, "Hi")
    assert told(found) == [("cede", True)]
    assert found[0].cede_content == "over"
    assert (desk.status, desk.result) == ("finished", "over")
    with pytest.raises(TreeError, match="its root has ceded"):
        await steps(desk, "Again")


async def test_a_cut_off_answer_is_continued_once() -> None:
    desk = machine(say("Once upon", finish="length"), say("a time", finish="length"), "never")
    found = await steps(desk, "Hi")
    assert told(found) == [("max_tokens", False), ("max_tokens", True)]
    assert "cut off" in found[0].history[-1].text


async def test_calls_of_a_cut_off_answer_are_not_made() -> None:
    desk = machine(say("", call("note", text="n"), finish="length"), "Done")
    await steps(desk, "Hi")
    assert desk.instance.state == {}


async def test_a_refusal_is_told_in_the_detail() -> None:
    found = await steps(machine(say("No.", finish="content_filter")), "Hi")
    assert (found[0].yield_reason, found[0].detail) == ("end_turn", "refused")


async def test_a_paused_answer_goes_on() -> None:
    assert told(await steps(machine(say("Wait", finish="pause"), "Done"), "Hi")) == [
        ("tool_use", False),
        ("end_turn", True),
    ]


async def test_a_delegated_answer_ends_the_run_as_external() -> None:
    assert told(await steps(machine(say("", finish="external")), "Hi")) == [("external", True)]


async def test_a_run_without_input_has_one_empty_step() -> None:
    desk = machine("never")
    found = await steps(desk)
    assert told(found) == [("end_turn", True)]
    assert found[0].history == []
    assert executor(desk).requests == []


async def test_silent_messages_are_kept_and_ask_nobody() -> None:
    desk = machine("never")
    found = await steps(desk, user_message("by the way", silent=True))
    assert told(found) == [("end_turn", True)]
    assert roles(desk.history) == ["user:by the way"]


async def test_the_step_limit_is_an_error_and_the_turn_stays_open() -> None:
    desk = machine(say("", call("note", id="1", text="n")), say("", call("note", id="2", text="m")), "Done")
    with pytest.raises(TreeError, match="no end after 2 steps") as caught:
        await steps(desk, "Hi", max_steps=2)
    assert caught.value.code == "step_limit"
    assert desk.status == "ready"
    assert told(await steps(desk)) == [("end_turn", True)]
    assert desk.instance.state == {"notes": ["n", "m"]}


async def test_a_model_failure_is_raised_and_the_next_run_continues_the_turn() -> None:
    desk = machine(AgentFailed("overloaded", code="server_error"), "Hello")
    with pytest.raises(AgentFailed, match="overloaded"):
        await steps(desk, "Hi")
    found = await steps(desk)
    assert told(found) == [("end_turn", True)]
    assert roles(found[0].history) == ["user:Hi", "assistant:Hello"]
    assert roles(desk.history) == ["user:Hi", "assistant:Hello"]


async def test_a_failing_leaf_leaves_nothing_of_the_step() -> None:
    desk = machine(
        {"desk": ["Thanks"], "worker": ["Done A", "Done A"], "helper": [RuntimeError("down"), "Done B"]},
        children=[child(worker, "a"), child(helper, "b")],
    )
    with pytest.raises(RuntimeError, match="down"):
        await steps(desk, "Hi")
    assert roles(desk.history) == ["user:Hi"]
    assert len(desk.instance.children) == 2
    assert told(await steps(desk))[-1] == ("end_turn", True)


async def test_a_second_run_of_a_machine_is_refused() -> None:
    desk = machine(say("", call("note", text="n")), "Done")
    running = run_machine(desk, "Hi")
    await anext(running)
    assert desk.status == "running"
    with pytest.raises(MachineBusy):
        await steps(desk, "Me too")
    assert told([step async for step in running]) == [("end_turn", True)]
    assert "Me too" not in str(desk.history)


async def test_nothing_goes_on_before_the_next_step_is_asked_for() -> None:
    desk = machine(say("", call("note", text="n")), "Done")
    running = run_machine(desk, "Hi")
    await anext(running)
    assert len(executor(desk).requests) == 1
    await running.aclose()
    assert told(await steps(desk)) == [("end_turn", True)]


async def test_a_run_that_is_broken_off_is_continued_by_the_next() -> None:
    desk = machine(say("", call("note", text="n")), "Done")
    async for step in run_machine(desk, "Hi"):
        assert step.yield_reason == "tool_use"
        break
    assert told(await steps(desk)) == [("end_turn", True)]


async def test_a_message_that_comes_during_the_last_answer_is_answered_too() -> None:
    desk = machine("first", "second")

    def answer(request: AgentRequest) -> Any:
        desk.enqueue("one more thing")
        return "first"

    executor(desk).scripts[""] = (answer, "second")
    found = await steps(desk, "Hi")
    assert told(found) == [("end_turn", False), ("end_turn", True)]
    assert roles(desk.history) == ["user:Hi", "assistant:first", "user:one more thing", "assistant:second"]
    assert [m for step in found for m in step.history] == desk.history


async def test_a_silent_message_that_comes_during_the_last_answer_starts_nothing() -> None:
    desk = machine("first")

    def answer(request: AgentRequest) -> Any:
        desk.enqueue(user_message("by the way", silent=True))
        return "first"

    executor(desk).scripts[""] = (answer, "never")
    found = await steps(desk, "Hi")
    assert len(executor(desk).requests) == 1
    assert [m for step in found for m in step.history] == desk.history
    assert found[-1].done


async def test_an_addressed_message_reaches_a_worker_that_sees_only_its_own() -> None:
    desk = machine({"worker": ["I am here"], "desk": ["Thanks"]}, children=[child(worker)])
    await steps(desk, user_message("psst", to="w"))
    (first, _) = executor(desk).requests
    assert "psst" in str(first.messages)


async def test_a_worker_does_not_see_what_the_user_says_to_the_primary() -> None:
    desk = machine({"worker": ["I am here"], "desk": ["Thanks"]}, children=[child(worker)])
    await steps(desk, "a secret")
    first, second = executor(desk).requests
    assert "a secret" not in str(first.messages)
    assert "a secret" in str(second.messages)


async def test_an_ephemeral_message_is_seen_in_one_run_and_stored_without_what_it_shows() -> None:
    desk = machine("I see", "Gone")
    frame = ephemeral_message([{"type": "image", "mimeType": "image/png", "data": "AAAA"}], singleton="cam")
    desk.enqueue([frame, frame])
    await steps(desk, "Look")
    await steps(desk, "And now?")
    first, second = executor(desk).requests
    assert "AAAA" in str(first.messages)
    assert "latest of 2" in str(first.messages)
    assert "AAAA" not in str(second.messages)
    assert [m.items for m in desk.history if m.role == "ephemeral"] == [[]]


async def test_a_queued_message_with_the_same_id_replaces_the_first() -> None:
    desk = machine("Hello")
    desk.enqueue(user_message("draft", metadata={"messageId": "m1"}))
    desk.enqueue(user_message("final", metadata={"messageId": "m1"}))
    await steps(desk)
    assert roles(desk.history) == ["user:final", "assistant:Hello"]


async def test_a_callback_that_fails_loses_no_message() -> None:
    def observe(message: Any) -> None:
        raise RuntimeError("observer down")

    desk = machine("Hello", on_message_enqueue=observe)
    desk.enqueue(["a", "b"])
    await steps(desk)
    assert roles(desk.history) == ["user:a", "user:b", "assistant:Hello"]


async def test_an_answer_can_be_heard_while_it_comes() -> None:
    heard: list[Any] = []
    await steps(machine("Hello there"), "Hi", on_message_stream=heard.append)
    assert [event["type"] for event in heard] == [
        "message_start",
        "message_update",
        "message_update",
        "message_end",
    ]
    assert [event["seq"] for event in heard] == [0, 1, 2, 3]


async def test_what_a_user_must_not_say_is_refused_before_anything_runs() -> None:
    desk = machine("never")
    with pytest.raises(TreeError, match="no message role"):
        await steps(desk, {"role": "wizard", "items": "x"})
    with pytest.raises(TreeError, match="max_steps"):
        RunOptions(max_steps=0)


async def test_a_second_primary_is_refused_at_the_spawn() -> None:
    desk = machine(say("", call("transition", to="deepen_twice", reason="")), "Sorry")
    found = await steps(desk, "Hi")
    (result,) = results(found[0])
    assert "would both talk to the user" in result["content"]
    assert desk.instance.children == ()


async def test_arguments_that_are_no_json_are_told_to_the_model() -> None:
    broken = say("", call("note", text="n"))
    desk = machine("x", "y")

    def answer(request: AgentRequest) -> Any:
        from dataclasses import replace

        calls = ({"id": "c", "name": "note", "arguments": {}, "invalid_arguments": "{oops"},)
        return replace(broken, tool_calls=calls)

    executor(desk).scripts[""] = (answer, "Sorry")
    found = await steps(desk, "Hi")
    (result,) = results(found[0])
    assert result["is_error"] is True
    assert "{oops" in result["content"]
