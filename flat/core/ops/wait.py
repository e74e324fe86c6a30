"""`wait_for:` parks the instance until a signal arrives on a channel.

While parked nothing runs: the execution is one row in the checkpoint store, and whoever delivers the
signal wakes it. The payload becomes the op's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
        channel = self.channel.render(here.scope)
        if isinstance(channel, bool) or not isinstance(channel, str | int | float) or channel == "":
            said = f"wait_for should give the name of a channel, and gives {self.named(channel)}"
            raise self.channel.error(said, hint="write a text: `approval/{{ context.id }}`")
        channel = str(channel)
        return Block((AwaitSignal(here.effect_id(self.key), here.node, channel, here.deadline),))

    @staticmethod
    def named(value: Any) -> str:
        """What a value that is no name is called."""
        return "nothing" if value is None or value == "" else repr(value)[:60]

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        value = event.value
        return Next(output=value if isinstance(value, Mapping) else {"value": value})
