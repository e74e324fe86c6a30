from __future__ import annotations

from typing import Any

from flat import MachineHooks

PARTS = 4


class Scissors(MachineHooks):
    def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        paragraphs = context["text"].strip().split("\n\n")
        size = -(-len(paragraphs) // PARTS)
        context["parts"] = ["\n\n".join(paragraphs[n : n + size]) for n in range(0, len(paragraphs), size)]
        return context
