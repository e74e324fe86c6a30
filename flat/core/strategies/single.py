"""One call; what it answers is the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flat.core.events import Done, Failed, Reply
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.strategies.asking import Asking


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    kind: Literal["single"] = "single"

    def start(self, call: Asking, here: View) -> Answer:
        return Block((call.ask(here),))

    def resume(self, call: Asking, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        reply: Reply = event.value
        here.spend(reply.spent)
        return Next(output=reply.payload)
