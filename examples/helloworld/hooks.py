"""The hooks of `run.py`, for the command line: `flat.toml` names this class."""

from __future__ import annotations

from typing import Any

from flat import LoggingHooks


class HelloWorldHooks(LoggingHooks):
    def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        if action_name == "append_char":
            last_output = context.get("last_output", "")
            if last_output:
                context["current"] = context["current"] + str(last_output)[0]
        return context
