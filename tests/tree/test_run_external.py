"""State that is owned outside, in runs: its owner is asked, what it says is recorded, and told once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from running import ANY, results, steps, told

from flat.errors import CallRefused
from flat.runtime.runtime import Runtime
from flat.runtime.treeload import tree_machine
from flat.runtime.trees import TreeMachine, create_machine, open_machine, run_command
from flat.testing.crash import Scenario, memory_places, sweep
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import (
    Cede,
    Charter,
    CommandCtx,
    CommandResult,
    Ctx,
    Instance,
    Node,
    Pack,
    PackCtx,
    Spawn,
    apply_changes,
    cede,
    change_from_data,
    command,
    command_result,
    spawn,
    tool,
    transition,
)
from flat.tree.external import ExternalContext, MutationEvent

pytestmark = pytest.mark.anyio


class Store:
    """Owns states outside, as a database would: adds what it is told, and gives each state a version."""

    def __init__(self, **known: Any) -> None:
        self.known: dict[str, Any] = dict(known)
        self.events: list[MutationEvent] = []
        self.steps: list[tuple[str, str, int]] = []
        self.open: list[str] = []
        self.closed: list[str] = []

    def own(self, ctx: ExternalContext) -> Any:
        scope = ctx.scope.id
        self.open.append(scope)

        def hydrate(state: Mapping[str, Any]) -> None:
            if scope in self.known:
                ctx.set_state(self.known[scope], mode="replace")

        def mutate(state: Mapping[str, Any], event: MutationEvent) -> None:
            self.events.append(event)
            self.known[scope] = {
                **self.known.get(scope, state), **event.patch, "version": state.get("version", 0) + 1,
            }  # fmt: skip
            ctx.set_state(self.known[scope], mode="replace")

        def close() -> None:
            self.open.remove(scope)
            self.closed.append(scope)

        ctx.on_hydrate(hydrate)
        ctx.on_mutation(mutate)
        ctx.on_step(lambda step, events: self.steps.append((scope, step["id"], len(events))))
        return close


@tool
def note(text: str, ctx: Ctx) -> str:
    """Write a note down."""
    ctx.update_state({"note": text})
    return f"noted {text}"


@command
def rename(name: str, ctx: CommandCtx) -> CommandResult:
    """Give it a name."""
    ctx.update_state({"name": name})
    return command_result({"named": name})


@transition("Hand over")
def report(text: str) -> Cede:
    return cede(text)


def machine(
    store: Store, *answers: Any, runtime: Runtime | None = None, state: Any = None
) -> TreeMachine[Any]:
    return create_machine(
        charter(store, *answers),
        Instance(owned(store), state or {}, id="r"),
        runtime=runtime,
        execution_id="t",
    )


def owned(store: Store) -> Node[Any]:
    def hire() -> Spawn:
        return spawn(worker, {})

    worker = Node(
        "Work.", ANY, name="worker", worker=True, tools=[note], transitions=[report], externalize=store.own,
        id="worker",
    )  # fmt: skip
    return Node(
        "Plan.", ANY, name="desk", initial_state={}, tools=[note], commands=[rename], externalize=store.own, id="desk",
        transitions={"hire": transition("Hire", name="hire")(hire), "report": report},
    )  # fmt: skip


def charter(store: Store, *answers: Any) -> Charter:
    desk = owned(store)
    worker = Node(
        "Work.", ANY, name="worker", worker=True, tools=[note], transitions=[report], externalize=store.own,
        id="worker",
    )  # fmt: skip
    return Charter("office", executor=ScriptedExecutor(*(answers or ("x",))), nodes=[desk, worker])


async def test_what_a_tool_writes_goes_to_the_owner_and_what_that_shows_is_in_the_tree() -> None:
    store = Store()
    office = machine(store, say("", call("note", text="a"), call("note", text="b")), "Bye")
    await steps(office, "Go")
    assert office.instance.state == {"note": "b", "version": 2}
    assert [(e.scope.id, dict(e.patch), e.state.get("version"), e.step) for e in store.events] == [
        ("node:r", {"note": "a"}, None, 1), ("node:r", {"note": "b"}, 1, 1),
    ]  # fmt: skip
    assert store.events[0].seq < store.events[1].seq


async def test_a_change_that_the_owner_shows_nothing_of_leaves_the_state_alone() -> None:
    silent = Node("x", ANY, name="n", initial_state={}, tools=[note], externalize=lambda ctx: None)
    answers = ScriptedExecutor(say("", call("note", text="a")), "Bye")
    office = create_machine(Charter("c", executor=answers, nodes=[silent]), Instance(silent, {}, id="r"))
    found = await steps(office, "Go")
    assert results(found[0])[0]["content"] == "noted a"
    assert office.instance.state == {}
    assert not [m for m in office.history if m.role == "instance"]


async def test_the_models_own_patch_goes_to_the_owner_too() -> None:
    store = Store()
    office = machine(store, say("", call("updateState", patch={"legs": ["Oslo"]})), "Bye")
    await steps(office, "Go")
    assert office.instance.state == {"legs": ["Oslo"], "version": 1}


async def test_the_owner_says_what_the_state_is_when_a_turn_begins() -> None:
    store = Store(**{"node:r": {"note": "kept outside"}})
    office = machine(store, "One", "Two")
    await steps(office, "Go")
    assert office.instance.state == {"note": "kept outside"}
    store.known["node:r"] = {"note": "changed outside"}
    found = await steps(office, "Again")
    assert office.instance.state == {"note": "changed outside"}
    assert "changed outside" in str(office.charter.executor.requests[-1].messages)  # type: ignore[union-attr]
    assert told(found) == [("end_turn", True)]


async def test_scopes_come_and_go_with_their_instances_and_with_the_run() -> None:
    store = Store()
    office = machine(
        store, say("", call("transition", to="hire")), say("", call("note", text="w")),
        say("", call("transition_report", text="done")), "Bye",
    )  # fmt: skip
    async with office.run("Go") as running:
        await anext(running)
        await anext(running)
        (child,) = office.instance.children
        assert child.state == {"note": "w", "version": 1}
        assert store.open == ["node:r", f"node:{child.id}"]
        async for _ in running:
            pass
    assert store.open == []
    assert sorted(store.closed) == sorted(["node:r", f"node:{child.id}"])


async def test_owners_hear_of_every_step_with_what_was_asked_of_them_in_it() -> None:
    store = Store()
    office = machine(store, say("", call("note", text="a"), call("note", text="b")), "Bye")
    found = await steps(office, "Go")
    assert store.steps == [("node:r", found[0].id, 2), ("node:r", found[1].id, 0)]


async def test_commands_and_records_from_outside_go_to_the_owner() -> None:
    store = Store()
    office = machine(store, "Hello")
    done = await run_command(office, "rename", {"name": "Mira"})
    assert done.result["success"]
    assert office.instance.state == {"name": "Mira", "version": 1}
    record = {"kind": "state", "instanceId": "r", "patch": {"name": "Ada"}}
    await steps(office, {"role": "instance", "items": record})
    assert office.instance.state == {"name": "Ada", "version": 2}
    assert [e.step for e in store.events] == [0, 0]


async def test_the_state_of_a_pack_may_be_owned_outside() -> None:
    store = Store()

    @tool
    def count(ctx: PackCtx) -> str:
        """Count one more."""
        ctx.update_state({"n": ctx.state["n"] + 1})
        return "counted"

    pack = Pack("p", initial_state={"n": 0}, validator=ANY, tools=[count], externalize=store.own)
    node = Node("x", ANY, name="n", initial_state={}, packs=[pack])
    executor = ScriptedExecutor(say("", call("count"), call("count")), "Bye")
    office = create_machine(
        Charter("c", executor=executor, nodes=[node], packs=[pack]), Instance(node, {}, id="r")
    )
    await steps(office, "Go")
    assert office.instance.pack_states == {"p": {"n": 2, "version": 2}}
    assert {e.scope.id for e in store.events} == {"pack:p"}


async def test_an_owner_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def own(ctx: ExternalContext) -> None:
        def mutate(state: Any, event: MutationEvent) -> None:
            raise RuntimeError("the database is away")

        ctx.on_mutation(mutate)

    node = Node("x", ANY, name="n", initial_state={}, tools=[note], externalize=own)
    executor = ScriptedExecutor(say("", call("note", text="a")), "Bye")
    office = create_machine(Charter("c", executor=executor, nodes=[node]), Instance(node, {}, id="r"))
    assert (await steps(office, "Go"))[-1].response == "Bye"
    assert "the database is away" in caplog.text


async def test_out_of_turn_a_state_is_not_made_visible_and_the_error_says_when_it_can_be() -> None:
    refused: list[CallRefused] = []

    def own(ctx: ExternalContext) -> None:
        def after(step: Any, events: Any) -> None:
            try:
                ctx.set_state({"n": 1})
            except CallRefused as error:
                refused.append(error)

        ctx.on_step(after)

    node = Node("x", ANY, name="n", initial_state={}, externalize=own)
    executor = ScriptedExecutor("Bye")
    office = create_machine(Charter("c", executor=executor, nodes=[node]), Instance(node, {}, id="r"))
    await steps(office, "Go")
    assert office.instance.state == {}
    assert [error.code for error in refused] == ["not_now"]
    assert "on_mutation" in refused[0].message


async def test_the_log_replayed_gives_the_tree_with_what_owners_have_shown() -> None:
    store = Store(**{"node:r": {"note": "from outside"}})
    office = machine(store, say("", call("note", text="a")), "Bye")
    first = office.instance
    await steps(office, "Go")
    records = [m.items for m in office.history if m.role == "instance"]
    changes: list[Any] = [change_from_data(r) if isinstance(r, Mapping) else r for r in records]
    assert apply_changes(office.charter, first, changes).root.state == office.instance.state
    assert office.instance.state == {"note": "a", "version": 1}


async def test_another_process_goes_on_with_what_was_shown_and_meets_the_owner_again(tmp_path: Path) -> None:
    store = Store()
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        await steps(machine(store, say("", call("note", text="a")), "Bye", runtime=runtime), "Go")
        other = Store(**json.loads(json.dumps(store.known)))
        office = await open_machine(charter(other, say("", call("note", text="b")), "Bye"), runtime, "t")
        assert office.instance.state == {"note": "a", "version": 1}
        await steps(office, "Go on")
        assert office.instance.state == {"note": "b", "version": 2}
        assert other.events[0].seq > store.events[-1].seq
    assert (store.open, other.open) == ([], [])


async def test_a_tree_with_an_owner_comes_to_the_same_end_wherever_the_process_dies() -> None:
    @tool("Write down", safe=True)
    def write(text: str, ctx: Ctx) -> str:
        ctx.update_state({"note": text})
        return f"wrote {text}"

    def own(ctx: ExternalContext) -> None:
        def mutate(state: Any, event: MutationEvent) -> None:
            ctx.set_state({"notes": [*state.get("notes", []), event.patch["note"]], "key": event.key[-9:]})

        ctx.on_hydrate(lambda state: ctx.set_state({"met": True}))
        ctx.on_mutation(mutate)

    class Answering:
        async def call(self, request: Any) -> Any:
            said = str(request.messages)
            if "wrote b" in said:
                return say("", call("transition_report", id="d3", text="bye", reason=""))
            if "wrote a" in said:
                return say("", call("write", id="d2", text="b"))
            return say("", call("write", id="d1", text="a"))

    def made(clock: Any) -> Any:
        node = Node(
            "x", ANY, name="n", initial_state={}, tools=[write], transitions=[report], externalize=own, id="n"
        )
        return tree_machine(Charter("c", executor=Answering(), nodes=[node]), until="cede")

    report_ = await sweep(Scenario(machine=made, input={"message": "Go"}), memory_places())
    report_.check()
    assert report_.points > 15
