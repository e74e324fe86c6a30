"""`launch:` starts other machines and does not wait for them.

The launched executions are born in the very commit that records the launch: a crash leaves both or neither. So
the op asks for no effect, and goes on at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flat.core.effects import StartChild
from flat.core.events import Done, Failed
from flat.core.op import Answer, Next, View
from flat.core.template import CompiledMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    machines: tuple[str, ...]
    input: CompiledMapping | None = None
    key: str = "launch"
    kind: Literal["launch"] = "launch"

    def start(self, here: View) -> Answer:
        given = {} if self.input is None else self.input.render(here.scope)
        for number, machine in enumerate(self.machines):
            effect_id = here.effect_id(self.key, str(number) if len(self.machines) > 1 else "")
            here.launch(StartChild(effect_id, here.node, machine, given, awaited=False))
        return Next()

    def resume(self, here: View, event: Done | Failed) -> Answer:
        raise AssertionError("a launch asks for no effects")
