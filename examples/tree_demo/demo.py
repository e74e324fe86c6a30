"""A tree of one node: a node, a charter that knows it, an instance, a machine, and something said to it."""

from __future__ import annotations

import os

import anyio
from pydantic import BaseModel

from flat import (
    create_charter,
    create_instance,
    create_machine,
    create_node,
    create_standard_executor,
    run_machine_to_completion,
)


class Idle(BaseModel):
    count: int


idle_node = create_node(
    instructions="You are a helpful assistant.",
    validator=Idle,
    tools={},
    transitions={},
    initial_state={"count": 0},
)

charter = create_charter(
    name="demo",
    # Any provider: anthropic/…, gemini/…, ollama/… with its key in the environment.
    executor=create_standard_executor(model="openai/gpt-5-mini", api_key=os.environ.get("OPENAI_API_KEY")),
    nodes={"idle": idle_node},
)


async def main() -> None:
    root_instance = create_instance(idle_node, {"count": 0})
    machine = create_machine(charter, {"instance": root_instance})
    step = await run_machine_to_completion(machine, "Hello!")
    print(step.response)


if __name__ == "__main__":
    anyio.run(main)
