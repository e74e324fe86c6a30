"""A chat about cooking. Two nodes take turns and share a shopping list, which is a pack."""

from __future__ import annotations

import sys

import anyio
from pydantic import BaseModel

from flat import Runtime, TreeMachine, create_machine, run_command, run_machine_to_completion
from flat.tree import (
    Charter,
    CommandResult,
    Instance,
    Node,
    Pack,
    PackCommandContext,
    PackCtx,
    SerialTransition,
    StandardExecutor,
    command,
    command_result,
    tool,
)


class Shopping(BaseModel):
    """The state of the pack: the same for every node that has the pack."""

    items: list[str] = []


def rules(state: Shopping) -> str:
    """What the model is told about the list, as it stands."""
    return "The list is long: suggest what needs nothing more." if len(state.items) > 9 else ""


@tool("Put something on the shopping list", safe=True)  # safe: it changes the state, and nothing else
def buy(item: str, ctx: PackCtx[Shopping]) -> str:
    ctx.update_state({"items": [*ctx.model.items, item]})
    return f"{item} is on the list"


@command("Empty the shopping list", safe=True)
def clear(ctx: PackCommandContext[Shopping]) -> CommandResult:
    """A command is for people: no model hears of it."""
    count = len(ctx.model.items)
    ctx.replace_state(Shopping())
    return command_result(f"{count} off the list")


shopping = Pack(
    "shopping",
    "What is to be bought.",
    instructions=rules,
    validator=Shopping,
    tools=[buy],
    commands=[clear],
)
host = Node(
    "Chat with the user about food. Leave recipes to the cook.",
    name="host",
    packs=[shopping],
    transitions={"ask_cook": SerialTransition("cook", "The user wants to cook something.")},
)
cook = Node(
    "You are a cook. Propose one dish, and put what is missing on the shopping list.",
    name="cook",
    packs=[shopping],
    transitions={"leave": SerialTransition("host", "The dish is settled.")},
)
charter = Charter(
    "kitchen",
    # Any provider: anthropic/…, gemini/…, ollama/… with its key in the environment.
    executor=StandardExecutor(model="openai/gpt-5-mini"),
    nodes=[host, cook],
)


async def chat(name: str) -> None:
    """A conversation in the terminal: `/clear` is a command, all else is said to the model."""
    async with Runtime("sqlite:///flat.db") as runtime:
        machine = create_machine(charter, Instance(host), runtime=runtime, execution_id=name)
        for line in map(str.strip, sys.stdin):
            print(await answer(machine, line), flush=True)


async def answer(machine: TreeMachine, line: str) -> str:
    if not line.startswith("/"):
        return (await run_machine_to_completion(machine, line)).response
    result = (await run_command(machine, line[1:])).result
    return str(result["value"] if result["success"] else result["error"])


if __name__ == "__main__":
    anyio.run(chat, "chat" if len(sys.argv) < 2 else sys.argv[1])
