"""Something is bought, after a person has said yes: until then the tree waits, and no process with it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from flat.tree import Charter, Ctx, Node, StandardExecutor, Suspend, suspend, tool, transition

OFFERS = Path(__file__).with_name("offers.json")
ORDERS = Path("orders")


class Purchase(BaseModel):
    item: str | None = None
    price: float | None = None


@tool("Look up what an item costs, and take it into the purchase", safe=True)
def look_up(item: str, ctx: Ctx[Purchase]) -> str:
    price: float = json.loads(OFFERS.read_text(encoding="utf-8"))[item]
    ctx.update_state({"item": item, "price": price})
    return f"{item}: {price} EUR"


@tool("Place the order, once it is approved", safe=True)  # twice with one key is one order
def place_order(ctx: Ctx[Purchase]) -> str:
    ORDERS.mkdir(exist_ok=True)
    order = ORDERS / f"{ctx.idempotency_key.replace('/', '-')}.json"
    order.write_text(json.dumps(ctx.state), encoding="utf-8")
    return "ordered"


@transition("Ask a person for approval; they answer in their own words")
def ask(state: Purchase) -> Suspend:
    return suspend(f"Buy the {state.item} for {state.price} EUR?", "approval", {"price": state.price})


buyer = Node(
    "You buy what the user wants: look it up, ask for approval, place the order. Without a yes, place none.",
    Purchase,
    name="buyer",
    initial_state=Purchase(),
    tools=[look_up, place_order],
    transitions=[ask],
)
charter = Charter(
    "purchase",
    # Any provider: anthropic/…, gemini/…, ollama/… with its key in the environment.
    executor=StandardExecutor(model="openai/gpt-5-mini"),
    nodes=[buyer],
)
