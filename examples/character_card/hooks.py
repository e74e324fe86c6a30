"""What the person in front of the terminal says."""

from __future__ import annotations

from typing import Any

import anyio.to_thread

from flat import MachineHooks


class Chat(MachineHooks):
    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
        lines = context["lines"]
        if lines is None:
            print(context["talk"][-1])
            context["said"] = await anyio.to_thread.run_sync(input, "you: ", abandon_on_cancel=True)
        else:
            context["said"] = lines.pop(0) if lines else ""
