"""The workshop: a tree with one mechanic, who has a machine of states write the invoice."""

from __future__ import annotations

from pydantic import BaseModel

from flat.tree import Cede, Charter, Node, StandardExecutor, cede, machine_tool, tool, transition

PARTS = {"chain": 18.0, "brake pads": 12.5, "tube": 6.0}


class Line(BaseModel):
    """What the machine `invoice` takes as its input."""

    part: str
    price: float


@tool("Say what a part costs", safe=True)
def price(part: str) -> str:
    return f"A {part} costs {PARTS[part]} EUR."


invoice = machine_tool(
    "invoice",
    "Write the invoice for a part",
    input_schema=Line,
    output=lambda written: f"{written['line']} Total: {written['total']} EUR.",
)


@transition("Hand the bicycle back, with a note that has the invoice")
def hand_back(note: str) -> Cede:
    return cede(note)


mechanic = Node(
    "You repair bicycles: find the price of the part, have the invoice written, and hand the bicycle back.",
    name="mechanic",
    tools=[price, invoice],
    transitions=[hand_back],
)
charter = Charter(
    "workshop",
    # Any provider, as in profiles.yml: anthropic/…, gemini/…, ollama/…
    executor=StandardExecutor(model="openai/gpt-5-mini", retry={"backoffs": [1, 4, 16]}),
    nodes=[mechanic],
)
