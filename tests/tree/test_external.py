"""State that is owned outside the tree."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from travel import Desk

from flat.errors import CallRefused, StateError
from flat.tree import Charter, Instance, Node, Pack, PackPatch, StatePatch, start_tree
from flat.tree.external import ExternalContext, ExternalStates

pytestmark = pytest.mark.anyio


def made(handler: Any, pack_handler: Any = None) -> ExternalStates:
    pack = Pack("p", externalize=pack_handler, initial_state={"n": 0})
    node = Node("x", Desk, name="n", externalize={"state": handler} if handler else None, packs=[pack])
    within = Charter("c", nodes={"n": node}, packs=[pack])
    return ExternalStates(within, start_tree(within, Instance(node, Desk(legs=["Oslo"]), id="r")))


async def test_a_change_is_told_and_not_applied_until_the_handler_says_so() -> None:
    seen: list[Any] = []

    def mirror(ctx: ExternalContext) -> None:
        def on_mutation(state: Any, event: Any) -> None:
            seen.append((state["legs"], event.patch, event.step, event.seq))
            if event.patch["legs"]:
                ctx.set_state({"legs": [*event.patch["legs"], "Rome"]})

        ctx.on_mutation(on_mutation)

    external = made(mirror)
    await external.sync()
    assert external.is_external("node:r")
    assert await external.consume(StatePatch(instance_id="r", patch={"legs": []}), step=1)
    assert external.root.state["legs"] == ["Oslo"]
    assert await external.consume(StatePatch(instance_id="r", patch={"legs": ["Turin"]}), step=2)
    assert external.root.state["legs"] == ["Turin", "Rome"]
    assert external.changes == [StatePatch(instance_id="r", patch={"legs": ["Turin", "Rome"]})]
    assert seen == [(["Oslo"], {"legs": []}, 1, 1), (["Oslo"], {"legs": ["Turin"]}, 2, 2)]


async def test_a_pack_can_be_owned_outside_too() -> None:
    def own(ctx: ExternalContext) -> None:
        ctx.on_instance_message(lambda state, event: ctx.set_state({"n": state["n"] + 1}, mode="replace"))

    external = made(None, own)
    await external.sync()
    assert await external.consume(PackPatch(pack_name="p", patch={"n": 5}))
    assert external.root.pack_states == {"p": {"n": 1}}
    assert not await external.consume(StatePatch(instance_id="r", patch={}))
    assert not await external.consume(PackPatch(pack_name="p", patch={}, owner_id="x"))


async def test_what_is_set_is_validated_and_needs_its_owner() -> None:
    contexts: list[ExternalContext] = []
    external = made(contexts.append)
    await external.sync()
    with pytest.raises(StateError):
        contexts[0].set_state({"legs": 3})
    with pytest.raises(CallRefused, match="mode"):
        contexts[0].set_state({}, mode="merge")  # type: ignore[arg-type]
    external.root = external.root.having(id="other")
    with pytest.raises(CallRefused, match="no instance"):
        contexts[0].set_state({})


async def test_scopes_follow_their_instances() -> None:
    closed: list[str] = []

    def handler(ctx: ExternalContext) -> Any:
        return lambda: closed.append(ctx.scope.id)

    external = made(handler)
    await external.sync()
    external.root = external.root.having(id="other")
    await external.sync()
    assert closed == ["node:r"]
    assert external.is_external("node:other")
    await external.dispose()
    assert closed == ["node:r", "node:other"]


async def test_hydration_and_steps_are_told_with_their_events() -> None:
    told: list[Any] = []

    async def later(step: Any, events: Any) -> None:
        told.append((step, [event.seq for event in events]))

    def handler(ctx: ExternalContext) -> None:
        ctx.on_hydrate(lambda state: told.append(state["legs"]))
        ctx.on_step(later)

    external = made(handler)
    await external.sync()
    await external.consume(StatePatch(instance_id="r", patch={}))
    await external.notify_step("one")
    await external.notify_step("two")
    assert told == [["Oslo"], ("one", [1]), ("two", [])]


async def test_whatever_fails_outside_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    def broken(ctx: ExternalContext) -> None:
        raise ValueError("no store")

    def failing(ctx: ExternalContext) -> None:
        async def later(state: Any, event: Any) -> None:
            raise ValueError("later")

        def now(state: Any, event: Any) -> None:
            raise ValueError("now")

        ctx.on_mutation(now)
        ctx.on_mutation(later)

    external = made(broken, failing)
    with caplog.at_level(logging.WARNING):
        await external.sync()
        assert not external.is_external("node:r")
        assert await external.consume(PackPatch(pack_name="p", patch={}))
    assert len(caplog.records) == 3
