"""Hooks on trees: what they see, what they may steer, and that neither is lost or done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import ANY, NODES, desk, report, results, steps, told, worker

import flat
from flat.errors import CharterError
from flat.hooks import HooksRegistry, LoggingHooks, MachineHooks, MetricsHooks, observer
from flat.runtime.runtime import Runtime
from flat.runtime.treeload import tree_machine
from flat.runtime.trees import TreeMachine, create_machine, open_machine, run_command
from flat.testing.crash import Scenario, memory_places, sweep
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Instance, Node, resume_item, spawn, tool, transition

pytestmark = pytest.mark.anyio


def charter(*answers: Any, **options: Any) -> Charter:
    return Charter("office", executor=ScriptedExecutor(*answers), nodes=NODES, **options)


def machine(hooks: Any, *answers: Any, runtime: Runtime | None = None, **options: Any) -> TreeMachine[Any]:
    made = charter(*answers, hooks=hooks, **options)
    return create_machine(made, Instance(desk, {}, id="r"), runtime=runtime, execution_id="t")


DESK = """
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Node, cede, transition

@transition("Hand over")
def report(text: str):
    return cede(text)

desk = Node("Plan.", {"type": "object"}, name="desk", initial_state={}, transitions=[report])
executor = ScriptedExecutor(say("", call("transition_report", text="bye")))
charter = Charter("travel", executor=executor, nodes=[desk], hooks="audit")
"""

MACHINE = """
spec: flatmachine
spec_version: "4.2.1"
data:
  name: parent
  context: {request: "{{ input.request }}"}
  machines:
    desk: {tree: "hooked_desk.py:charter", node: desk}
  states:
    start:
      type: initial
      machine: desk
      input: {message: "{{ context.request }}"}
      output_to_context: {plan: "{{ output.content }}"}
      transitions: [{to: done}]
    done: {type: final, output: {plan: "{{ context.plan }}"}}
"""


def failing(*then: Any) -> tuple[Any, ...]:
    return (RuntimeError("the model is away"), *then)


HIRED = (
    say("", call("note", text="a"), call("transition_hire", task="t")),
    say("", call("transition_report", text="found")),
    "Bye",
)


# -- watching -----------------------------------------------------------------------------


class Watching(MachineHooks):
    """Notes what it is told, and tries to change all of it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @observer
    def on_machine_start(self, context: dict[str, Any]) -> Any:
        self.seen.append("start")
        context["input"].clear()

    @observer
    def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
        self.seen.append(f"end {final_output['content']}")
        return {"content": "changed"}

    def on_state_enter(self, state_name: str, context: dict[str, Any]) -> Any:
        self.seen.append(f"> {state_name}")
        context["tree"].clear()
        context["turn"]["n"] = 99
        return {}

    def on_state_exit(self, state_name: str, context: dict[str, Any], output: Any) -> Any:
        self.seen.append(f"{state_name} >")
        if state_name == "settle":
            self.seen.append(f"step {output[-1]['reason']}")

    @observer
    def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> Any:
        self.seen.append(f"{from_state} -> {to_state} ({context['effect']['kind']})")
        return "elsewhere"


async def test_watching_hooks_are_told_the_whole_run_and_change_nothing() -> None:
    hooks = Watching()
    office = machine(hooks, say("", call("transition_report", text="bye")))
    found = await steps(office, "Go")
    assert told(found) == [("cede", True)]
    assert hooks.seen == [
        "start", "> intake", "intake >", "> think", "think >", "> act", "act >",
        "desk -> ceded (cede)", "> settle", "settle >", "step cede", "> done", "end bye",
    ]  # fmt: skip
    assert office.result == "bye"


async def test_every_move_of_an_instance_is_told_with_its_record() -> None:
    hooks = Watching()
    office = machine(hooks, *HIRED)
    plain = machine(None, *HIRED)
    assert told(await steps(office, "Go")) == told(await steps(plain, "Go"))
    assert [one for one in hooks.seen if "->" in one] == [
        "desk -> worker (spawn)", "worker -> ceded (cede)",
    ]  # fmt: skip
    assert [one for one in hooks.seen if one.startswith("step")] == [
        "step tool_use",
        "step cede",
        "step end_turn",
    ]
    assert hooks.seen[-1] == "> wait"
    assert [m.text for m in office.history] == [m.text for m in plain.history]
    assert office.instance.state == plain.instance.state == {"notes": ["a"]}


async def test_a_second_turn_begins_with_the_end_of_the_wait() -> None:
    hooks = Watching()
    office = machine(hooks, "One", "Two")
    await steps(office, "Go")
    del hooks.seen[:]
    await steps(office, "Again")
    assert hooks.seen == [
        "wait >", "> intake", "intake >", "> think", "think >", "> settle", "settle >", "step end_turn", "> wait",
    ]  # fmt: skip


async def test_hooks_that_raise_while_they_watch_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MachineHooks):
        def on_state_enter(self, state_name: str, context: dict[str, Any]) -> Any:
            raise RuntimeError("no ink")

        @observer
        def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> Any:
            raise RuntimeError("no ink")

    office = machine(Broken(), *HIRED)
    assert (await steps(office, "Go"))[-1].response == "Bye"
    assert "no ink" in caplog.text


async def test_the_hooks_that_come_with_the_library_serve_trees_too(caplog: pytest.LogCaptureFixture) -> None:
    metrics = MetricsHooks()
    office = machine([metrics, "logging", LoggingHooks()], *HIRED)
    assert (await steps(office, "Go"))[-1].response == "Bye"
    assert metrics.get_metrics()


async def test_a_command_is_told_as_an_action_and_runs_whatever_the_hook_does() -> None:
    class Actions(MachineHooks):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> Any:
            self.seen.append((state_name, action_name, context["invocation"]["input"]))
            raise ValueError(f"unknown action {action_name}")

    hooks = Actions()
    office = machine(hooks, "x")
    done = await run_command(office, "rename", {"name": "Mira"})
    assert done.result["success"]
    assert office.instance.state == {"name": "Mira"}
    assert hooks.seen == [("intake", "rename", {"name": "Mira"})]


async def test_hooks_hear_an_answer_while_it_comes() -> None:
    class Hearing(MachineHooks):
        def __init__(self) -> None:
            self.events: list[dict[str, Any]] = []

        async def on_agent_stream_event(self, state_name: str, event: dict[str, Any], context: Any) -> None:
            assert state_name == "desk"
            self.events.append(event)

    hooks = Hearing()
    await steps(machine(hooks, "Hello there"), "Go")
    kinds = [event["type"] for event in hooks.events]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_end")
    assert [event["seq"] for event in hooks.events] == list(range(len(kinds)))
    assert len({event["messageId"] for event in hooks.events}) == 1


# -- the beginning and the end ----------------------------------------------------------------


class Ends(MachineHooks):
    """Steers what goes in and what comes out."""

    def on_machine_start(self, context: dict[str, Any]) -> Any:
        context["input"]["messages"] = [{"role": "user", "items": "Changed"}]
        return context

    def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
        return {**final_output, "content": f"<{final_output['content']}>"}


@pytest.mark.parametrize("field", ["hooks", "lifecycle_hooks"])
async def test_the_beginning_and_the_end_are_steered_as_those_of_a_machine(field: str) -> None:
    made = charter(say("", call("transition_report", text="bye")), **{field: Ends()})
    office = create_machine(made, Instance(desk, {}, id="r"))
    found = await steps(office, "Go")
    assert found[0].history[0].text == "Changed"
    assert (office.status, office.result) == ("finished", "<bye>")


async def test_lifecycle_hooks_hear_of_the_beginning_and_the_end_alone() -> None:
    life, rest = Watching(), Watching()
    office = machine(rest, say("", call("transition_report", text="bye")), lifecycle_hooks=life)
    await steps(office, "Go")
    assert life.seen == ["start", "end bye"]
    assert rest.seen[0] == "> intake"
    assert not any(one.startswith(("start", "end")) for one in rest.seen)


async def test_the_end_is_told_once_also_where_a_machine_runs_the_tree() -> None:
    hooks = Watching()
    made = charter(say("", call("transition_report", text="bye")), hooks=hooks)
    async with Runtime("memory:") as runtime:
        outcome = await runtime.start(tree_machine(made, until="cede"), {"message": "Go"})
    assert outcome.output["content"] == "bye"
    assert (hooks.seen.count("start"), hooks.seen.count("end bye")) == (1, 1)


# -- calls ------------------------------------------------------------------------------------


class Guard(MachineHooks):
    """Answers with what it was made with."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    def _answer(self, point: str, context: dict[str, Any]) -> Any:
        answer = self.answers.get(point)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, dict):
            return {**context, **answer, "tree": None, "state": {"stolen": True}}
        return context

    def on_tool_calls(self, state_name: str, tool_calls: list[Any], context: dict[str, Any]) -> Any:
        self.asked.append((state_name, [one["name"] for one in tool_calls], context["instance"]))
        return self._answer("calls", context)

    def on_tool_result(self, state_name: str, tool_result: dict[str, Any], context: dict[str, Any]) -> Any:
        self.asked.append((tool_result["name"], tool_result["content"], dict(context["state"])))
        return self._answer("result", context)

    def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> Any:
        self.asked.append((from_state, to_state, context["effect"]["kind"]))
        self._answer("transition", context)
        return to_state


async def test_a_hook_sees_the_calls_before_they_are_made_and_each_result_after() -> None:
    guard = Guard()
    office = machine(guard, say("", call("note", text="a"), call("fail")), "Bye")
    await steps(office, "Go")
    assert guard.asked == [
        ("desk", ["note", "fail"], "r"),
        ("note", "noted a", {"notes": ["a"]}),
        ("fail", "fail failed: no paper", {"notes": ["a"]}),
    ]
    assert office.instance.state == {"notes": ["a"]}


async def test_calls_that_a_hook_skips_are_not_made_and_the_model_is_told() -> None:
    office = machine(
        Guard(calls={"_skip_tools": ["note"]}), say("", call("note", text="a"), call("fail")), "Bye"
    )
    found = await steps(office, "Go")
    assert [one["content"] for one in results(found[0])] == [
        "note was skipped by policy.",
        "fail failed: no paper",
    ]
    assert office.instance.state == {}
    assert found[-1].response == "Bye"


async def test_a_hook_that_aborts_ends_the_turn_of_the_leaf() -> None:
    office = machine(
        Guard(calls={"_abort_tool_loop": True}), say("Well", call("note", text="a")), "Not asked"
    )
    found = await steps(office, "Go")
    assert told(found) == [("end_turn", True)]
    assert [one["content"] for one in results(found[0])] == [
        "note was not called: this turn was ended by policy."
    ]
    assert office.instance.state == {}


async def test_a_hook_that_aborts_after_a_result_keeps_what_was_done() -> None:
    guard = Guard(result={"_abort_tool_loop": True})
    office = machine(guard, say("", call("note", text="a"), call("note", text="b")), "Not asked")
    found = await steps(office, "Go")
    assert told(found) == [("end_turn", True)]
    assert office.instance.state == {"notes": ["a"]}
    assert "ended by policy" in results(found[0])[1]["content"]


async def test_a_hook_that_raises_refuses_the_calls() -> None:
    office = machine(Guard(calls=PermissionError("not on Sundays")), say("", call("note", text="a")), "Bye")
    found = await steps(office, "Go")
    assert results(found[0])[0]["is_error"]
    assert results(found[0])[0]["content"] == "note was refused: not on Sundays"
    assert (office.instance.state, found[-1].response) == ({}, "Bye")


async def test_a_hook_that_raises_at_a_result_withholds_it() -> None:
    office = machine(
        Guard(result=PermissionError("a secret")), say("", call("finish"), call("note", text="a")), "Bye"
    )
    found = await steps(office, "Go")
    assert results(found[0])[0]["content"] == "finish was called, and what it gave is withheld: a secret"
    assert office.instance.state == {}


async def test_a_hook_may_say_something_to_the_leaf_that_goes_on() -> None:
    guard = Guard(result={"_steering_messages": ["Be brief.", {"role": "user", "content": "In French."}]})
    office = machine(guard, say("", call("note", text="a")), "Oui")
    found = await steps(office, "Go")
    notes = [m for m in office.history if m.metadata.silent]
    assert [m.text for m in notes] == ["Be brief.", "In French."]
    last = office.charter.executor.requests[-1].messages  # type: ignore[union-attr]
    assert "In French." in str(last)
    assert found[-1].response == "Oui"


async def test_a_move_that_a_hook_vetoes_is_not_taken() -> None:
    guard = Guard(transition=PermissionError("nobody is free"))
    office = machine(guard, say("", call("transition_hire", task="t")), "Then not")
    found = await steps(office, "Go")
    assert guard.asked[1] == ("desk", "worker", "spawn")
    assert results(found[0])[0]["content"] == "transition_hire was refused: nobody is free"
    assert not office.instance.children
    assert found[-1].response == "Then not"


async def test_a_move_that_a_hook_lets_pass_is_taken_where_it_leads() -> None:
    guard = Guard()
    office = machine(guard, *HIRED)
    assert (await steps(office, "Go"))[-1].response == "Bye"
    moves = [one for one in guard.asked if one[-1] in ("spawn", "cede")]
    assert moves == [("desk", "worker", "spawn"), ("worker", "ceded", "cede")]


async def test_what_a_hook_returns_beside_its_keys_changes_nothing() -> None:
    office = machine(Guard(calls={"_skip_tools": []}, result={}), *HIRED)
    plain = machine(None, *HIRED)
    await steps(office, "Go")
    await steps(plain, "Go")
    assert office.instance.state == plain.instance.state
    assert [m.items for m in office.history] == [m.items for m in plain.history]


# -- failures ---------------------------------------------------------------------------------


class Rescue(MachineHooks):
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[str] = []

    def on_error(self, state_name: str, error: Exception, context: dict[str, Any]) -> Any:
        self.seen.append(f"{state_name}: {error}")
        return self.answer


async def test_a_hook_may_have_a_failed_model_asked_again() -> None:
    hooks = Rescue("retry")
    office = machine(hooks, *failing(RuntimeError("and again"), "Hello"))
    found = await steps(office, "Go")
    assert found[-1].response == "Hello"
    assert [one.rpartition(": ")[2] for one in hooks.seen] == ["the model is away", "and again"]


async def test_a_hook_may_have_a_worker_cede_whose_model_failed() -> None:
    office = machine(Rescue("cede"), HIRED[0], *failing("Without it, then"))
    found = await steps(office, "Go")
    assert told(found) == [("tool_use", False), ("cede", False), ("end_turn", True)]
    assert "the model is away" in found[1].cede_content
    assert not office.instance.children


async def test_a_hook_may_have_a_leaf_wait_for_a_person_when_its_model_failed() -> None:
    office = machine(Rescue("suspend"), *failing("Hello again"))
    found = await steps(office, "Go")
    assert found[-1].yield_reason == "awaiting_resume"
    waiting = found[-1].suspended_instances[0]
    assert "the model is away" in waiting["reason"]
    again = await steps(office, resume_item("r", waiting["suspendId"], "It is back"))
    assert again[-1].response == "Hello again"


@pytest.mark.parametrize(
    ("answer", "text"), [(None, "the model is away"), ("billing", "retry, cede, suspend, or None")]
)
async def test_without_a_recovery_the_turn_stays_open(answer: Any, text: str) -> None:
    hooks = Rescue(answer)
    office = machine(hooks, *failing("Later"))
    with pytest.raises(Exception, match=text):
        await steps(office, "Go")
    assert office.turn["open"]
    assert (await steps(office))[-1].response == "Later"


# -- and after a crash ------------------------------------------------------------------------


class Careful(MachineHooks):
    """Steers everywhere, and always alike."""

    def on_machine_start(self, context: dict[str, Any]) -> Any:
        return context

    def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
        return {**final_output, "checked": True}

    def on_tool_calls(self, state_name: str, tool_calls: list[Any], context: dict[str, Any]) -> Any:
        return {**context, "_skip_tools": ["fail"]}

    def on_tool_result(self, state_name: str, tool_result: dict[str, Any], context: dict[str, Any]) -> Any:
        return {**context, "_steering_messages": f"{tool_result['name']} gave {tool_result['content']}"}

    def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> Any:
        if to_state == "helper":
            raise PermissionError("no helpers")
        return to_state


async def test_a_steered_tree_comes_to_the_same_end_wherever_the_process_dies() -> None:
    def answer(request: Any) -> Any:
        said = str(request.messages)
        if request.input["node"] == "worker":
            return say("", call("transition_report", id="w1", text="found", reason=""))
        if "found" in said:
            return say("", call("transition_report", id="d3", text="bye", reason=""))
        return say(
            "", call("stamp", id="d1", text="a"), call("fail", id="d2"),
            call("transition_hire", id="d4", task="t", reason=""),
        )  # fmt: skip

    @tool("Stamp a text", safe=True)
    def stamp(text: str) -> str:
        return f"stamped {text}"

    stamping = Node(
        desk.instructions, ANY, name="desk", initial_state={}, id=desk.id,
        tools=[stamp, *(one for one in desk.tools.values() if one.name != "note")],
        transitions=desk.transitions,
    )  # fmt: skip

    class Answering:
        async def call(self, request: Any) -> Any:
            return answer(request)

    def made(clock: Any) -> Any:
        nodes = [stamping, *(node for node in NODES if node not in (desk,))]
        return tree_machine(
            Charter("office", executor=Answering(), nodes=nodes, hooks=Careful()), node="desk", until="cede"
        )

    report = await sweep(Scenario(machine=made, input={"message": "Go"}), memory_places())
    report.check()
    assert report.points > 30


async def test_a_recorded_answer_of_a_hook_is_not_asked_for_again(tmp_path: Path) -> None:
    guard = Guard(calls={"_skip_tools": ["note"]})
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        office = machine(guard, say("", call("note", text="a")), *failing(), runtime=runtime)
        with pytest.raises(Exception, match="away"):
            await steps(office, "Go")
        other = Guard()
        found = await open_machine(charter("Bye", hooks=other), runtime, "t")
        assert (await steps(found))[-1].response == "Bye"
        assert found.instance.state == {}
        assert guard.asked == [("desk", ["note"], "r")]
        assert other.asked == []


async def test_a_stored_tree_goes_on_without_the_hooks_it_began_with(tmp_path: Path) -> None:
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        await steps(machine(Guard(), "Hello", runtime=runtime), "Go")
        found = await open_machine(charter(say("", call("note", text="a")), "Bye"), runtime, "t")
        assert (await steps(found, "And?"))[-1].response == "Bye"
        assert found.instance.state == {"notes": ["a"]}


async def test_hooks_by_name_come_from_the_registry_of_the_machine_that_runs_the_tree(tmp_path: Path) -> None:
    (tmp_path / "hooked_desk.py").write_text(DESK)
    (tmp_path / "machine.yml").write_text(MACHINE)
    hooks = Watching()
    parent = flat.load(tmp_path / "machine.yml", hooks=HooksRegistry({"audit": lambda: hooks}))
    async with Runtime("memory:") as runtime:
        outcome = await runtime.start(parent, {"request": "Oslo"})
    assert outcome.output == {"plan": "bye"}
    assert (hooks.seen.count("start"), hooks.seen.count("end bye")) == (1, 1)


async def test_hooks_serve_launched_workers_as_executions_of_their_own() -> None:
    scout = Node("Scout.", ANY, name="scout", worker=True, initial_state={}, transitions=[report])

    @transition("Send a scout")
    def send() -> Any:
        return spawn(scout, launch=True)

    base = Node("Plan.", ANY, name="base", initial_state={}, transitions=[send])
    answers = {
        "base": [say("", call("transition", to="send")), "Thanks"],
        "scout": [say("", call("transition_report", text="snow"))],
    }
    hooks = Watching()
    made = Charter("scouting", executor=ScriptedExecutor(answers), nodes=[base, scout], hooks=hooks)
    found = await steps(create_machine(made, Instance(base, {}, id="r")), "Go")
    assert found[-1].response == "Thanks"
    assert [one for one in hooks.seen if one.startswith(("start", "end"))] == ["start", "start", "end snow"]
    assert "scout -> ceded (cede)" in hooks.seen


def test_a_class_in_place_of_hooks_is_refused() -> None:
    with pytest.raises(CharterError, match=r"hooks is the class Guard; give an object: Guard\(\)"):
        charter("x", hooks=Guard)


def test_the_worker_is_the_one_of_the_charter() -> None:
    assert charter("x").nodes["worker"] is worker
