"""Ask several times at once and keep all answers. A call that fails is left out; only when all fail is it an error.

When one fails as all of them will, and none was answered, the others are not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flat.core.events import Done, Failed, Reply
from flat.core.failure import is_certain
from flat.core.grown import Grown
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.strategies.asking import Asking


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`local` is `{"done": [[number, answered, payload]]}`, in the order in which the answers came."""

    n: int = 3
    kind: Literal["sample"] = "sample"

    def start(self, call: Asking, here: View) -> Answer:
        local: Mapping[str, Any] = here.local or {"done": []}
        answered = {number for number, _, _ in local["done"]}
        asked = tuple(call.ask(here, str(number)) for number in range(self.n) if number not in answered)
        return Block(asked, local)

    def resume(self, call: Asking, here: View, event: Done | Failed) -> Answer:
        number = int(event.effect_id.rpartition(".")[2])
        if isinstance(event, Failed):
            if is_certain(event.failure) and not any(answered for _, answered, _ in here.local["done"]):
                return Raise(event.failure)
            entry: list[Any] = [number, False, None]
        else:
            reply: Reply = event.value
            here.spend(reply.spent)
            entry = [number, True, reply.payload]
        done = Grown(here.local["done"], [entry])
        if len(done) < self.n:
            return Block((), {"done": done})
        results = [payload for _, answered, payload in sorted(done, key=lambda e: e[0]) if answered]
        if not results and isinstance(event, Failed):
            return Raise(event.failure)
        return Next(output={"results": results, "count": len(results)})
