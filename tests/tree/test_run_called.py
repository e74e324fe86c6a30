"""When a machine that a leaf has called waits: the leaf waits visibly, and the rest of the tree goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import ANY, executor, note, report, results, roles, steps, told, wait

import flat
from flat.agents.protocol import AgentRequest, AgentResult
from flat.backends import MemoryStore
from flat.drivers.dispatch import Dispatcher
from flat.errors import AgentFailed, TreeError
from flat.hooks import Notice
from flat.runtime.machine import Machine
from flat.runtime.runtime import Runtime
from flat.runtime.treeload import tree_machine
from flat.runtime.trees import (
    TreeMachine,
    create_machine,
    deserialize_machine,
    run_command,
    run_machine,
    serialize_machine,
)
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Instance, Node, command, machine_node, machine_tool, resume_item
from flat.tree.apply import replayed
from flat.tree.changes import StatePatch
from flat.tree.commands import command_resume
from flat.tree.messages import command_item
from flat.tree.results import Cede, cede

pytestmark = pytest.mark.anyio


def approval(*channels: str) -> Machine:
    """Waits on each of these, one after the other."""
    names = channels or ("approve/1",)
    states: dict[str, Any] = {
        f"ask{n}": {
            "wait_for": name, "output_to_context": {"ok": "{{ output.ok }}"},
            "transitions": [{"to": f"ask{n + 1}" if n + 1 < len(names) else "end"}],
        }
        for n, name in enumerate(names)
    }  # fmt: skip
    states["ask0"]["type"] = "initial"
    states["end"] = {"type": "final", "output": {"ok": "{{ context.ok }}"}}
    data = {"name": "approval", "context": {"ok": ""}, "states": states}
    return flat.load(config={"spec": "flatmachine", "spec_version": "4.2.1", "data": data})


@command
def leave() -> Cede:
    """Hand over at once."""
    return cede("by command")


@command
def go_on() -> Any:
    """Wait no more."""
    return command_resume("do it")


ask = machine_tool("approval", "Ask", input_schema=ANY, output=lambda out: f"approved: {out['ok']}")
asker = Node(
    "Ask.", ANY, name="asker", worker=True, tools=[ask, note], transitions=[report], commands=[leave, go_on]
)
busy = Node("Work.", ANY, name="busy", worker=True, tools=[note], transitions=[report])
office = machine_node(
    "approval", name="office", input=lambda s: {}, cede=lambda out: f"approved: {out['ok']}"
)
scout = Node("Scout.", ANY, name="scout", worker=True, transitions=[report, wait])
desk = Node("Plan.", ANY, name="desk", initial_state={}, tools=[ask, note], transitions=[report])
CALLED = [asker, busy, office, scout, desk]


def answer(request: AgentRequest) -> AgentResult:
    """Who asks for approval hands it over; who works does so three times; the desk repeats what it was told last."""
    node, said = request.input["node"], str(request.messages)
    if node == "asker":
        if "approved: " in said:
            return say("", call("transition_report", text="asked"))
        before, after = (call("note", text=when, id=when) for when in ("before", "after"))
        return say("May I?", before, call("approval", id="a"), after)
    if node == "busy":
        done = said.count("noted")
        if done < 3:
            return say("", call("note", text=str(done), id=f"b{done}"))
        return say("", call("transition_report", text="worked"))
    if node == "scout":
        return say(
            "", call("transition_report", text="yes!") if "yes" in said else call("transition", to="wait")
        )
    last = list(request.messages or ())[-1]["content"]
    if "Ask" in said and "approved" not in said:
        return say("May I?", call("approval", id="a"))
    return say(f"So: {last}")


def tree(
    *children: Instance[Any],
    script: Any = answer,
    child: Machine | None = None,
    hooks: Any = (),
    **options: Any,
) -> TreeMachine[Any]:
    charter = Charter("offices", executor=ScriptedExecutor(script), nodes=CALLED, hooks=hooks)
    machines = {"approval": child or approval()}
    return create_machine(charter, Instance(desk, {}, children, id="r"), machines=machines, **options)


def working(id: str = "b") -> Instance[Any]:
    return Instance(busy, {}, id=id)


def ids(found: Sequence[Any]) -> list[str]:
    return [info["instanceId"] for info in found[-1].suspended_instances]


async def approve(of: TreeMachine[Any], channel: str = "approve/1", ok: Any = "yes") -> None:
    await of.runtime.signal(channel, {"ok": ok})


# -- others go on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "channel", "payload"),
    [
        (Instance(asker, {}, id="w"), "approve/1", {"ok": "yes"}),
        (Instance(office, {}, id="w"), "approve/1", {"ok": "yes"}),
        (Instance(scout, {}, id="w", launch=True), "tree/t.0-1-tree.1-1-0/resume/s1", "yes"),
    ],
    ids=["tool", "node", "launched"],
)
async def test_the_other_leaves_go_on_while_a_machine_waits(
    child: Instance[Any], channel: str, payload: Any
) -> None:
    both = tree(child, working(), execution_id="t")
    found = await steps(both, "Go")
    assert told(found)[-2:] == [("cede", False), ("awaiting_resume", True)]
    assert "user:worked" in roles(both.history)
    (info,) = found[-1].suspended_instances
    assert info["instanceId"] == "w"
    assert channel in info["metadata"]["channels"]
    assert info["metadata"]["kind"] == "call"
    assert both.instance.children[0].suspended is not None
    await both.runtime.signal(channel, payload)
    found = await steps(both)
    assert told(found)[-2:] == [("cede", False), ("end_turn", True)]
    assert both.instance.children == ()
    assert found[-1].suspended_instances == ()


async def test_a_machine_that_waits_is_left_alone_while_others_go_on() -> None:
    taken: list[str] = []

    class Watching:
        def notify(self, notice: Notice) -> None:
            if notice.kind in ("started", "resumed") and notice.execution_id != "t":
                taken.append(notice.kind)

    async with Runtime("memory:", observers=[Watching()]) as runtime:
        await steps(tree(Instance(asker, {}, id="w"), working(), runtime=runtime, execution_id="t"), "Go")
    assert taken == ["started"]


async def test_what_is_below_a_caller_goes_on() -> None:
    boss = tree(Instance(busy, {}, id="b", background=True))
    found = await steps(boss, "Ask")
    assert ids(found) == ["r"]
    assert "user:worked" in roles(boss.history)
    assert boss.status == "awaiting_resume"
    await approve(boss)
    found = await steps(boss)
    assert found[-1].response.startswith("So: ")


async def test_a_primary_talks_on_while_a_worker_waits_for_its_machine() -> None:
    desk_ = tree(Instance(asker, {}, id="w", background=True))
    found = await steps(desk_, "Go")
    assert told(found) == [("end_turn", True)]
    assert ids(found) == ["w"]
    found = await steps(desk_, "And you?")
    assert (told(found), found[-1].response) == ([("end_turn", True)], "So: And you?")
    await approve(desk_)
    asked = len(executor(desk_).requests)
    found = await steps(desk_)
    assert found[-1].response == "So: asked"
    assert [request.input["node"] for request in executor(desk_).requests[asked:]] == ["asker", "desk"]


async def test_nothing_goes_on_before_the_next_step_is_asked_for() -> None:
    both = tree(Instance(asker, {}, id="w"), working())
    asked_ = executor(both).requests
    async with run_machine(both, "Go") as run:
        for asked in (2, 3, 4, 5):
            await anext(run)
            assert len(asked_) == asked
    found = await steps(both)
    assert told(found) == [("awaiting_resume", True)]
    assert len(asked_) == 5


async def test_nothing_goes_on_while_a_machine_runs_that_was_waited_for() -> None:
    class Slow:
        async def call(self, request: AgentRequest) -> AgentResult:
            for _ in range(500):
                await anyio.lowlevel.checkpoint()
            return say("yes")

    config = {
        "name": "approval",
        "agents": {"slow": {"spec": "flatagent", "data": {"model": {"name": "x"}, "user": "w"}}},
        "states": {
            "ask": {"type": "initial", "wait_for": "approve/1", "transitions": [{"to": "work"}]},
            "work": {
                "agent": "slow", "output_to_context": {"ok": "{{ output.content }}"}, "transitions": [{"to": "end"}],
            },
            "end": {"type": "final", "output": {"ok": "{{ context.ok }}"}},
        },
    }  # fmt: skip
    child = flat.load(
        config={"spec": "flatmachine", "spec_version": "4.2.1", "data": config}, agents={"slow": Slow()}
    )
    both = tree(Instance(asker, {}, id="w"), working(), child=child)
    asked = executor(both).requests
    async with run_machine(both, "Go") as run:
        await anext(run)
    await approve(both)
    async with run_machine(both) as run:
        before = len(asked)
        await anext(run)
        assert len(asked) == before + 1
        (below,) = await both.runtime.list(parent=both.execution_id)
        assert below.status == "done"
        found = [step async for step in run]
    assert found[-1].yield_reason == "end_turn"
    assert "user:asked" in roles(both.history)


async def test_a_result_that_comes_during_a_run_is_taken_into_it() -> None:
    both = tree(Instance(asker, {}, id="w"), working())
    found = []
    async for step in run_machine(both, "Go"):
        found.append(step)
        if len(found) == 1:
            await approve(both)
            async with Runtime(both.runtime.opened(), machines={"approval": approval()}) as elsewhere:
                await Dispatcher(elsewhere.opened(), elsewhere.resume).dispatch_once()
    assert found[-1].yield_reason == "end_turn"
    assert roles(both.history).index("user:asked") < roles(both.history).index("user:worked")


# -- the caller --------------------------------------------------------------------------------------


async def test_a_message_to_a_caller_is_stored_at_once_and_answered_after_the_result() -> None:
    alone = tree()
    assert told(await steps(alone, "Ask")) == [("awaiting_resume", True)]
    found = await steps(alone, "Well?")
    assert told(found) == [("awaiting_resume", True)]
    assert roles(alone.history) == ["user:Ask", "suspend", "user:Well?"]
    await approve(alone)
    found = await steps(alone)
    assert told(found) == [("tool_use", False), ("end_turn", True)]
    assert roles(alone.history)[3:6] == ["resume", "assistant:May I?", "results"]
    assert results(found[0])[0]["content"] == "approved: yes"
    last = executor(alone).requests[-1].messages or ()
    assert [message["role"] for message in last][-2:] == ["assistant", "tool"]


async def test_what_was_changed_before_the_call_is_seen_and_what_comes_after_it_is_done_later() -> None:
    one = tree(Instance(asker, {}, id="w"))
    await steps(one, "Go")
    assert one.instance.children[0].state == {"notes": ["before"]}
    await approve(one)
    found = await steps(one)
    assert [r["content"] for r in results(found[0])] == ["noted before", "approved: yes", "noted after"]
    patches = [m.items.patch for m in found[0].history if isinstance(m.items, StatePatch)]
    assert patches == [{"notes": ["before", "after"]}]


async def test_two_machines_of_one_answer_are_asked_one_after_the_other() -> None:
    twice = say("", call("approval", id="a"), call("approval", id="b"))
    one = tree(script={"desk": [twice, "Both"]})
    await steps(one, "Go")
    assert len(await one.runtime.list(parent=one.execution_id)) == 1
    await approve(one, ok="first")
    assert told(await steps(one)) == [("awaiting_resume", True)]
    assert len(await one.runtime.list(parent=one.execution_id)) == 2
    await approve(one, ok="second")
    found = await steps(one)
    assert [r["content"] for r in results(found[0])] == ["approved: first", "approved: second"]


async def test_hooks_look_at_what_a_machine_gave_in_the_end() -> None:
    seen: list[Any] = []

    class Watching:
        def on_tool_result(self, node: str, result: Any, context: Any) -> Any:
            seen.append((node, result["name"], result["content"]))
            return {**context, "_steering_messages": ["Be brief."]}

    one = tree(Instance(asker, {}, id="w"), hooks=[Watching()])
    await steps(one, "Go")
    assert seen == [("asker", "note", "noted before")]
    await approve(one)
    await steps(one)
    assert seen[1:3] == [("asker", "approval", "approved: yes"), ("asker", "note", "noted after")]
    assert roles(one.history).count("user:Be brief.") == 3


async def test_a_machine_that_ends_badly_is_an_error_result() -> None:
    alone = tree(script={"desk": [say("", call("approval")), "Too bad"]})
    await steps(alone, "Go")
    (child,) = await alone.runtime.list(parent=alone.execution_id)
    await alone.runtime.cancel(child.execution_id, "no time")
    found = await steps(alone)
    assert "was cancelled: no time" in results(found[0])[0]["content"]
    assert found[-1].response == "Too bad"


async def test_the_reason_that_is_told_is_that_of_now() -> None:
    alone = tree(child=approval("approve/1", "approve/2"))
    found = await steps(alone, "Ask")
    assert found[-1].suspended_instances[0]["reason"] == 'machine "approval" waits on approve/1'
    await approve(alone)
    found = await steps(alone, "Well?")
    (info,) = found[-1].suspended_instances
    assert info["reason"] == 'machine "approval" waits on approve/2'
    assert info["metadata"]["channels"] == ["approve/2"]


async def test_the_channel_that_is_told_is_the_one_in_the_end() -> None:
    inner = Charter("inner", executor=ScriptedExecutor(answer), nodes=CALLED)
    below = tree_machine(inner, node="desk", until="end_turn", machines={"approval": approval()})
    tool = machine_tool("office", "Ask the office", input_schema=ANY)
    front = Node("Front.", ANY, name="front", initial_state={}, tools=[tool])
    script = ScriptedExecutor(say("", call("office", message="Ask them")), "Thanks")
    top = create_machine(
        Charter("top", executor=script, nodes=[front]),
        Instance(front, {}, id="r"),
        machines={"office": below},
    )
    (info,) = (await steps(top, "Go"))[-1].suspended_instances
    assert info["metadata"]["channels"] == ["approve/1", f"tree/{top.execution_id}.0-1-tree.1-1-0-0/inbox"]
    assert info["reason"] == '"desk" waits: machine "approval" waits on approve/1'
    await approve(top)
    found = await steps(top)
    assert "approved: yes" in results(found[0])[0]["content"]


# -- waking ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "channel", "payload"),
    [
        (Instance(asker, {}, id="w"), "approve/1", {"ok": "yes"}),
        (Instance(scout, {}, id="w", launch=True), "tree/t.0-1-tree.1-1-0/resume/s1", "yes"),
    ],
    ids=["tool", "launched"],
)
async def test_a_dispatcher_wakes_the_machine_and_then_its_caller(
    child: Instance[Any], channel: str, payload: Any, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    async with Runtime(url) as runtime:
        both = tree(child, working(), runtime=runtime, execution_id="t")
        await steps(both, "Go")
        (below,) = await runtime.list(parent="t")
        stored = await runtime.opened().get("t")
        assert stored is not None
        assert stored.channels == (f"flat:child:{below.execution_id}", "tree/t/inbox")
    charter = Charter("offices", executor=ScriptedExecutor(answer), nodes=CALLED)
    machine = tree_machine(charter, machines={"approval": approval()})
    async with Runtime(url, machines={"offices": machine, "approval": approval()}) as runtime:
        await runtime.signal(channel, payload)
        await Dispatcher(runtime.opened(), runtime.resume).dispatch_once()
        context = (await runtime.inspect("t")).root.context
        assert "called" not in context
        assert [step["reason"] for step in context["steps"]][-1] == "end_turn"
        assert "children" not in context["tree"]


@pytest.mark.parametrize("signalled", [False, True])
async def test_nobody_but_its_machine_resumes_a_caller(signalled: bool) -> None:
    alone = tree(execution_id="t")
    (info,) = (await steps(alone, "Ask"))[-1].suspended_instances
    item = resume_item("r", info["suspendId"], "yes")
    if signalled:
        await alone.send([item])
        found = await steps(alone)
        assert found[0].refused[0]["code"] == "waits_for_machine"
    else:
        with pytest.raises(TreeError, match="on approve/1") as caught:
            await steps(alone, item)
        assert caught.value.code == "waits_for_machine"
    assert alone.status == "awaiting_resume"


async def test_a_command_does_not_resume_a_caller() -> None:
    one = tree(Instance(asker, {}, id="w"))
    await steps(one, "Go")
    done = await run_command(one, "go_on", instance_id="w")
    assert done.result["code"] == "waits_for_machine"
    assert one.instance.children[0].suspended is not None


# -- ends and limits ---------------------------------------------------------------------------------


async def test_a_caller_that_is_gone_takes_its_machine_with_it() -> None:
    one = tree(Instance(asker, {}, id="w"))
    await steps(one, "Go")
    found = await steps(one, command_item("leave", instance_id="w"))
    assert told(found) == [("command", True)]
    (child,) = await one.runtime.list(parent=one.execution_id)
    assert child.status == "cancelled"
    assert "called" not in (await one.runtime.inspect(one.execution_id)).root.context


async def test_a_root_that_hands_over_ends_what_is_still_waited_for() -> None:
    over = {"desk": [say("", call("transition_report", text="over"))], "asker": [say("", call("approval"))]}
    one = tree(Instance(asker, {}, id="w", background=True), script=over)
    found = await steps(one, "Go")
    assert told(found) == [("cede", True)]
    (child,) = await one.runtime.list(parent=one.execution_id)
    assert child.status == "cancelled"


async def test_a_limit_that_is_reached_meanwhile_leaves_the_machine_waiting() -> None:
    one = tree(Instance(asker, {}, id="w", background=True), max_agent_calls=3)
    await steps(one, "Go")
    await steps(one, "And you?")
    with pytest.raises(Exception, match=r"max_agent_calls \(3\) reached"):
        await steps(one, "And you?")
    (child,) = await one.runtime.list(parent=one.execution_id)
    assert child.status == "waiting"
    await approve(one)
    outcome = await one.runtime.resume(one.execution_id, one.machine, max_agent_calls=20)
    assert outcome.status == "waiting"
    assert outcome.context["tree"].get("children") is None


async def test_a_turn_with_a_machine_that_is_waited_for_is_not_over() -> None:
    charter = Charter("offices", executor=ScriptedExecutor(answer), nodes=CALLED)
    machine = tree_machine(charter, node="desk", until="end_turn", machines={"approval": approval()})
    async with Runtime("memory:") as runtime:
        tree_ = {"id": "r", "node": {"ref": "desk"}, "state": {}, "children": [
            {"id": "w", "node": {"ref": "asker"}, "state": {}, "background": True}]}  # fmt: skip
        outcome = await runtime.start(machine, {"tree": tree_, "message": "Go"}, execution_id="t")
        assert outcome.status == "waiting"
        await runtime.signal("approve/1", {"ok": "yes"})
        outcome = await runtime.resume("t", machine)
        assert (outcome.status, outcome.output["content"]) == ("done", "So: asked")


async def test_a_step_that_is_forgotten_loses_no_result() -> None:
    failing = [AgentFailed("no model", code="server_error", retryable=False)]

    def sometimes(request: AgentRequest) -> AgentResult:
        if request.input["node"] == "desk" and failing and "Again" in str(request.messages):
            raise failing.pop()
        return answer(request)

    one = tree(Instance(asker, {}, id="w", background=True), script=sometimes)
    await steps(one, "Go")
    await approve(one)
    with pytest.raises(AgentFailed):
        await steps(one, "Again")
    found = await steps(one)
    assert found[-1].response == "So: asked"
    assert len(await one.runtime.list(parent=one.execution_id)) == 1


# -- copies and records ------------------------------------------------------------------------------


async def test_the_records_of_the_log_lead_to_the_tree() -> None:
    both = tree(Instance(asker, {}, id="w"), working())
    first = both.instance
    await steps(both, "Go")
    changes: list[Any] = [m.items for m in both.history if m.role == "instance"]
    assert replayed(both.charter, first, changes) == both.instance


async def test_a_machine_that_is_made_of_another_one_waits_for_nothing() -> None:
    alone = tree()
    await steps(alone, "Ask")
    copy = deserialize_machine(alone.charter, serialize_machine(alone), machines={"approval": approval()})
    assert copy.instance.suspended is None
    found = await steps(copy, "Ask again")
    assert told(found) == [("awaiting_resume", True)]
    assert len(await copy.runtime.list(parent=copy.execution_id)) == 1


async def test_a_fork_has_a_machine_of_its_own_to_wait_for() -> None:
    alone = tree(execution_id="t")
    await steps(alone, "Ask")
    fork = await alone.fork(new_id="f")
    found = await steps(fork, "Well?")
    assert told(found) == [("awaiting_resume", True)]
    (mine,), (other,) = [await alone.runtime.list(parent=id_) for id_ in ("f", "t")]
    assert mine.execution_id != other.execution_id
    assert (mine.status, other.status) == ("waiting", "waiting")


# -- in any order ------------------------------------------------------------------------------------

KINDS = st.lists(
    st.tuples(st.sampled_from([asker, busy, office, scout]), st.booleans()), min_size=1, max_size=4
)
ACTIONS = st.lists(
    st.sampled_from(["say", "run", "break off", "answer", "dispatch", "open again", "leave"]), max_size=8
)


async def answer_all(runtime: Runtime) -> None:
    for execution in await runtime.list(status="waiting"):
        for channel in execution.channels:
            if channel.startswith("approve/") or channel.endswith("/resume/s1"):
                said: Any = {"ok": "yes"} if channel.startswith("approve/") else "yes"
                await runtime.signal(channel, said, to=execution.execution_id)


async def happened(one: TreeMachine[Any], action: str) -> None:
    waiting = [child.id for child in one.instance.children if child.node is asker]
    if action in ("say", "run"):
        await steps(one, "Hello" if action == "say" else None)
    elif action == "break off":
        async with run_machine(one, "Hello") as run:
            await anext(run)
    elif action == "answer":
        await answer_all(one.runtime)
    elif action == "leave" and waiting:
        await steps(one, command_item("leave", instance_id=waiting[0]))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kinds=KINDS, actions=ACTIONS)
def test_nothing_is_lost_or_done_twice_whatever_happens_meanwhile(
    kinds: list[tuple[Node[Any], bool]], actions: list[str]
) -> None:
    children = [
        Instance(node, {}, id=f"w{n}", background=background, launch=node is scout)
        for n, (node, background) in enumerate(kinds)
    ]
    charter = Charter("offices", executor=ScriptedExecutor(answer), nodes=CALLED)
    machines = {"approval": approval()}

    async def lived() -> None:
        store = MemoryStore()
        known = {"offices": tree_machine(charter, machines=machines), **machines}
        async with Runtime(store) as runtime, Runtime(store, machines=known) as elsewhere:
            one = create_machine(
                charter,
                Instance(desk, {}, children, id="r"),
                machines=machines,
                runtime=runtime,
                execution_id="t",
            )
            await steps(one, "Go")
            for action in [*actions, *["answer", "run"] * 4]:
                if action == "dispatch":
                    await Dispatcher(store, elsewhere.resume).dispatch_once()
                if action in ("dispatch", "open again"):
                    one = create_machine(charter, machines=machines, runtime=runtime, execution_id="t")
                    await one.load()
                await happened(one, action)
            below = await runtime.list(parent="t")
            snapshot = await runtime.inspect("t")
        assert one.instance.children == ()
        assert "called" not in snapshot.root.context
        assert {execution.status for execution in below} <= {"done", "cancelled"}
        items = [item for m in one.history if isinstance(m.items, list) for item in m.items]
        asked = [item["id"] for item in items if item["type"] == "tool_use"]
        assert sorted(asked) == sorted(item["tool_use_id"] for item in items if item["type"] == "tool_result")

    anyio.run(lived)
