"""`output_to_context:` writes into the context. Entries run in order, each sees the earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flat.core.events import Done, Failed
from flat.core.op import Answer, Next, View
from flat.core.template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    entries: tuple[tuple[str, Any], ...]
    """Context keys with a `Template`, or with a value that is stored as it is."""
    key: str = "assign"
    kind: Literal["assign"] = "assign"

    def start(self, here: View) -> Answer:
        context, seen = dict(here.context), dict(here.scope["context"])
        scope = {**here.scope, "context": seen, "input": seen}
        for name, value in self.entries:
            context[name] = seen[name] = value.render(scope) if isinstance(value, Template) else value
        return Next(context=context)

    def resume(self, here: View, event: Done | Failed) -> Answer:
        raise AssertionError("an assignment asks for no effects")
