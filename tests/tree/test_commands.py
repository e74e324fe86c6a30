"""Commands: which there are, what they ask for, and that a failing one asks for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from travel import Desk, charter, desk, fare_watch, tree, watcher

from flat.core.op import UNSET
from flat.tree import (
    Ceded,
    Charter,
    Command,
    CommandCtx,
    CommandOutcome,
    Instance,
    Node,
    Pack,
    PackPatch,
    Resumed,
    Spawned,
    StatePatch,
    Suspended,
    SuspendInfo,
    Transitioned,
    apply_changes,
    cede,
    command,
    command_result,
    command_resume,
    get_available_commands,
    perform_command,
    spawn,
    start_tree,
    suspend,
    transition_to,
    user_message,
)

pytestmark = pytest.mark.anyio

WAIT = SuspendInfo(suspend_id="s", reason="why")


def pack_write(given: Any, ctx: Any) -> None:
    ctx.update_state({"n": given.get("n", 1)})
    if given.get("fail"):
        raise ValueError("no luck")


def commanded(*commands: Any, packs: Any = (), state: Any = None) -> tuple[Instance[Any], Charter]:
    node = Node("x", dict, name="one", commands=commands, packs=packs)
    within = Charter("c", nodes={"one": node, "desk": desk, "fare_watch": fare_watch})
    return start_tree(within, Instance(node, state or {}, id="r")), within


async def run(result: Any, root: Instance[Any] | None = None, **options: Any) -> CommandOutcome:
    """Run a command that returns this."""
    go = Command("go", execute=lambda given, ctx: result() if callable(result) else result)
    made, within = commanded(go)
    if root is not None:
        made = root
    return await perform_command(within, made, "go", new_id=lambda: "new", **options)


async def test_commands_of_the_active_node_and_its_packs_are_available() -> None:
    notes = Pack("notes", commands=[Command("put", "Put", execute=pack_write)])
    node = Node("x", Desk, commands=[desk.commands["clear"]], packs=[notes], initial_state={})
    infos = get_available_commands(Instance(node, {}, watcher()))
    assert [(i.name, i.description) for i in infos] == [("clear", "Start over."), ("put", "Put")]
    assert infos[0].input_schema["properties"] == {}


async def test_a_command_asks_for_changes_and_answers() -> None:
    root = start_tree(charter, tree(legs=["Oslo"]))
    outcome = await perform_command(charter, root, "clear")
    assert outcome.result() == {"success": True, "value": "cleared"}
    assert outcome.changes == (StatePatch(instance_id="r", patch={"legs": []}),)
    assert root.state["legs"] == ["Oslo"]


async def test_an_input_is_checked_and_parsed() -> None:
    @command
    async def rename(name: str, ctx: CommandCtx[Any], loud: bool = False) -> Any:
        ctx.update_state({"name": name.upper() if loud else name})
        return command_result()

    root, within = commanded(rename)
    outcome = await perform_command(within, root, "rename", {"name": "Mira", "loud": "true"})
    assert outcome.changes == (StatePatch(instance_id="r", patch={"name": "MIRA"}),)
    wrong = await perform_command(within, root, "rename", {})
    assert (wrong.success, wrong.code) == (False, "invalid_command_input")
    assert "`name`: Field required" in wrong.error


async def test_unknown_commands_and_instances_are_failures() -> None:
    root = start_tree(charter, tree(watcher()))
    lost = await perform_command(charter, root, "cler")
    assert lost.result() == {"success": False, "error": '"desk" has no command "cler"; did you mean "clear"?'}
    assert (await perform_command(charter, root, "clear", instance_id="w")).code == "command_not_found"
    assert (await perform_command(charter, root, "clear", instance_id="x")).code == "unknown_instance"


async def test_a_failing_command_asks_for_nothing() -> None:
    @command
    def half(ctx: CommandCtx[Any]) -> Any:
        ctx.update_state({"a": 1})
        raise ValueError("no luck")

    root, within = commanded(half)
    outcome = await perform_command(within, root, "half")
    assert (outcome.error, outcome.code, outcome.changes) == ("no luck", "command_failed", ())


async def test_a_refused_update_fails_the_command() -> None:
    node = Node("x", Desk, commands=[Command("bad", execute=lambda g, ctx: ctx.update_state({"legs": 3}))])
    within = Charter("c", nodes={"n": node})
    outcome = await perform_command(within, Instance(node, {}, id="r"), "bad")
    assert outcome.code == "state_patch_invalid"


async def test_messages_of_a_result_are_handed_on() -> None:
    outcome = await run(command_result({"n": 1}, [user_message("look")]))
    assert outcome.messages == (user_message("look"),)
    assert outcome.value == {"n": 1}


async def test_a_command_may_return_what_a_transition_may() -> None:
    (moved,) = (await run(transition_to(desk))).changes
    assert moved == Transitioned(instance_id="r", node={"ref": "desk"}, state={"legs": [], "traveller": ""})
    (spawned,) = (await run(spawn(fare_watch, {"leg": "Oslo"}))).changes
    assert isinstance(spawned, Spawned)
    assert spawned.children[0].id == "new"
    (waits,) = (await run(suspend("why", "s"))).changes
    assert isinstance(waits, Suspended)


async def test_a_transition_of_a_command_keeps_the_id_and_begins_packs() -> None:
    go = Command("go", execute=lambda given: transition_to(desk))
    root, within = commanded(go)
    outcome = await perform_command(within, root, "go")
    after = apply_changes(within, root, outcome.changes).root
    assert after.id == "r"
    assert after.pack_states == {"likes": {"currency": "EUR", "seats": {}}}


async def test_a_command_may_cede_anything_but_the_root() -> None:
    outcome = await run(cede("all"))
    assert (outcome.success, outcome.code) == (False, "cannot_cede_root")
    go = Command("go", execute=lambda given: cede("found"))
    worker = Node("x", dict, name="w", worker=True, commands=[go])
    within = Charter("c", nodes={"w": worker})
    root = Instance(Node("y", dict), {}, Instance(worker, {}, id="w"), id="r")
    outcome = await perform_command(within, root, "go", instance_id="w")
    assert outcome.value == "found"
    assert outcome.changes == (Ceded(instance_id="w", content="found"),)


async def test_a_command_sees_its_own_updates_in_the_move_that_follows() -> None:
    def both(given: Any, ctx: Any) -> Any:
        ctx.update_state({"a": 1})
        return ctx.spawn(fare_watch, {"leg": "Oslo"})

    root, within = commanded(Command("both", execute=both))
    outcome = await perform_command(within, root, "both")
    assert [change.kind for change in outcome.changes] == ["state", "spawn"]


async def test_a_command_resumes_without_naming_the_wait() -> None:
    go = Command("go", execute=lambda given: command_resume("yes"))
    root, within = commanded(go)
    asleep = root.having(suspended=WAIT)
    outcome = await perform_command(within, asleep, "go")
    assert outcome.changes == (Resumed(instance_id="r", payload="yes"),)
    assert apply_changes(within, asleep, outcome.changes).root.suspended is None
    awake = await perform_command(within, root, "go")
    assert (awake.success, awake.changes) == (True, ())


@pytest.mark.parametrize("result", [lambda: None, "text", 3])
async def test_a_command_that_returns_nothing_of_use_fails(result: Any) -> None:
    assert (await run(result)).code == "bad_command_result"


async def test_a_command_of_a_pack_writes_the_pack_and_may_return_nothing() -> None:
    notes = Pack("notes", commands=[Command("put", execute=pack_write)], initial_state={"n": 0})
    root, within = commanded(packs=[notes])
    outcome = await perform_command(within, root, "put", {"n": 5})
    assert outcome.changes == (PackPatch(pack_name="notes", patch={"n": 5}),)
    failed = await perform_command(within, root, "put", {"n": 5, "fail": True})
    assert (failed.success, failed.changes) == (False, ())


async def test_a_node_command_goes_before_one_of_a_pack() -> None:
    put = Command("put", execute=lambda given: command_result("node"))
    notes = Pack("notes", commands=[Command("put", execute=pack_write)])
    root, within = commanded(put, packs=[notes])
    assert (await perform_command(within, root, "put")).value == "node"
    assert Resumed(instance_id="r").payload is UNSET
