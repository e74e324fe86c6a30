"""The second process: shows what an order waits for, asks, and goes on with it."""

from __future__ import annotations

import sys

import anyio
from anyio import to_thread
from order import charter

from flat import Runtime, open_machine, run_machine_to_completion
from flat.tree import resume_item, suspended_instances


async def approve(execution_id: str) -> None:
    async with Runtime("sqlite:///flat.db") as runtime:
        machine = await open_machine(charter, runtime, execution_id)
        for instance in suspended_instances(machine.instance):
            assert instance.suspended is not None
            answer = await to_thread.run_sync(input, f"{instance.suspended.reason} ")
            item = resume_item(instance.id, instance.suspended.suspend_id, answer)
            step = await run_machine_to_completion(machine, item)
            print(step.response)


if __name__ == "__main__":
    anyio.run(approve, sys.argv[1])
