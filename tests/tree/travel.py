"""A travel desk, for tests: a primary with a pack, a worker, and a node of each other kind that the tests need."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from flat.tree import (
    Caller,
    CallOutcome,
    Cede,
    Charter,
    CommandCtx,
    CommandResult,
    Ctx,
    Instance,
    Node,
    Pack,
    PackCtx,
    Ref,
    Spawn,
    Suspend,
    ToolCall,
    TransitionTo,
    cede,
    command,
    command_result,
    run_call,
    spawn,
    suspend,
    tool,
    transition,
    transition_to,
)


class Desk(BaseModel):
    legs: list[str] = []
    traveller: str = ""


class Watch(BaseModel):
    leg: str
    limit: float = 100.0


class Likes(BaseModel):
    currency: str = "EUR"
    seats: dict[str, str] = {}


@tool
async def add_leg(city: str, ctx: Ctx[Desk]) -> str:
    """Add one leg to the trip.

    Args:
        city: Where to go.
    """
    ctx.update_state({"legs": [*ctx.state["legs"], city]})
    return f"added {city}"


@tool("Look a fare up", safe=True)
def lookup_fare(leg: str) -> dict[str, Any]:
    return {"leg": leg, "fare": 118, "währung": "€"}


@tool("Say goodbye", terminal=True)
def goodbye() -> None:
    return None


@tool
def set_currency(currency: str, ctx: PackCtx[Likes]) -> str:
    """Remember the currency."""
    ctx.update_state({"currency": currency})
    return "ok"


@transition("Start a fare watch")
def watch(state: Desk, leg: str, limit: float = 50) -> Spawn:
    return spawn(fare_watch, {"leg": leg, "limit": limit}, brief=f"Watch {leg} for {state.traveller}")


@transition("Hand over to billing")
async def billing(reason: str) -> TransitionTo:
    return transition_to(billing_desk, {"account": reason})


@transition("Report")
def report(state: dict[str, Any]) -> Cede:
    return cede(f"{state['leg']} is under {state['limit']}")


@transition("Ask the buyer")
def ask_buyer() -> Suspend:
    return suspend("Buyer must confirm", suspend_id="buy-77", metadata={"price": 118})


@command
def clear(ctx: CommandCtx[Desk]) -> CommandResult:
    """Start over."""
    ctx.replace_state(Desk())
    return command_result("cleared")


likes = Pack(
    "likes",
    "What the traveller likes",
    instructions=lambda state: f"Count in {state['currency']}.",
    validator=Likes,
    tools=[set_currency],
)
fare_watch = Node(
    "Watch one fare.",
    Watch,
    name="fare_watch",
    worker=True,
    tools=[lookup_fare],
    transitions={"report": report, "ask_buyer": ask_buyer},
)
billing_desk = Node("Send the bill.", {"type": "object", "properties": {"account": {"type": "string"}}})
desk = Node(
    "Plan the trip.",
    Desk,
    name="desk",
    initial_state={},
    tools=[add_leg, goodbye],
    transitions={"watch": watch, "billing": billing, "watch_too": Ref("fare_watch.report")},
    commands=[clear],
    packs=[likes],
)
charter = Charter(
    "travel",
    nodes={"desk": desk, "fare_watch": fare_watch, "billing": billing_desk},
    tools=[lookup_fare],
    instructions="You work for Flat Travel.",
)


def tree(*children: Instance[Any], **state: Any) -> Instance[Any]:
    """A desk at the root."""
    return Instance(desk, Desk(**state), children, id="r")


def watcher(leg: str = "Oslo", id: str = "w") -> Instance[Any]:
    """A fare watch."""
    return Instance(fare_watch, Watch(leg=leg), id=id)


async def call(
    root: Instance[Any], name: str, input: Any = None, *, leaf: str = "r", within: Charter = charter
) -> CallOutcome:
    """Make one call, with ids that are easy to name."""
    caller = Caller(charter=within, leaf_id=leaf, new_id=lambda: "new")
    outcome = await run_call(caller, root, ToolCall("c1", name, input or {}))
    assert outcome is not None
    return outcome
