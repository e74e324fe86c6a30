"""A final state: the instance ends with its rendered `output`, or with what the last op gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flat.core.events import Done, Failed
from flat.core.op import Answer, End, View
from flat.core.template import CompiledMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    output: CompiledMapping | None = None
    key: str = "finish"
    kind: Literal["finish"] = "finish"

    def start(self, here: View) -> Answer:
        if self.output is None:
            return End({} if here.output is None else here.output)
        return End(self.output.render({"context": here.scope["context"]}))

    def resume(self, here: View, event: Done | Failed) -> Answer:
        raise AssertionError("finishing asks for no effects")
