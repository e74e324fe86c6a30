"""A command that was running when its process died."""

from __future__ import annotations

from typing import Any

import pytest

from flat import MemoryStore, Runtime, command, command_result, create_machine, open_machine, run_command
from flat.agents.protocol import AgentRequest
from flat.errors import CharterError
from flat.testing.clock import VirtualClock
from flat.tree import Charter, Instance, Node

pytestmark = pytest.mark.anyio


class Died(BaseException):
    """The process is gone."""


class Silent:
    async def call(self, request: AgentRequest) -> str:
        raise AssertionError("a command asks no model")


def desk(ran: list[int], **options: Any) -> Charter:
    @command("Forget all legs", **options)
    def clear(ctx: Any) -> Any:
        ran.append(len(ran))
        if len(ran) == 1:
            raise Died
        ctx.update_state({"legs": []})
        return command_result("cleared")

    node = Node("Plan.", dict, name="desk", initial_state={"legs": ["Oslo"]}, commands=[clear])
    return Charter("travel", executor=Silent(), nodes=[node])


async def die_in(charter: Charter, store: MemoryStore) -> None:
    async with Runtime(store, clock=VirtualClock()) as runtime:
        session = create_machine(charter, Instance(charter.nodes["desk"]), runtime=runtime, execution_id="s")
        await run_command(session, "clear")


@pytest.mark.parametrize(("options", "times", "legs"), [({"safe": True}, 2, []), ({}, 1, ["Oslo"])])
async def test_it_is_run_again_only_if_it_is_declared_safe(
    options: dict[str, Any], times: int, legs: list[str]
) -> None:
    ran: list[int] = []
    store, charter = MemoryStore(), desk(ran, **options)
    with pytest.raises(Died):
        await die_in(charter, store)
    async with Runtime(store, clock=VirtualClock()) as runtime:
        session = await open_machine(charter, runtime, "s")
        await runtime.resume("s", session.machine)
        await session.load()
        assert (len(ran), session.instance.state["legs"]) == (times, legs)


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CharterError, match='command "clear": in_doubt cannot be'):
        desk([], in_doubt="perhaps")
