"""`wait_for:` parks the instance until a signal arrives on a channel.

While parked nothing runs: the execution is one row in the checkpoint store, and whoever delivers the
signal wakes it. The payload becomes the op's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flat.core.effects import AwaitSignal
from flat.core.events import Done, Failed
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    channel: Template
    key: str = "wait"
    kind: Literal["wait"] = "wait"

    def start(self, here: View) -> Answer:
        channel = str(self.channel.render(here.scope))
        return Block((AwaitSignal(here.effect_id(self.key), here.node, channel, here.deadline),))

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        value = event.value
        return Next(output=value if isinstance(value, Mapping) else {"value": value})
