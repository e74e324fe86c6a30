"""What an op sees, made by hand: for tests that give one op one event and look at its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flat.core.effects import StartChild
from flat.core.events import Done, Failed, Spent
from flat.core.failure import Failure
from flat.core.hookref import HookRef, HookRefs
from flat.core.op import UNSET, Answer, Block

AT = 1000.0


@dataclass
class Here:
    """A `View` of a context. `spent` and `launched` hold what the op has told it."""

    context: Mapping[str, Any] = field(default_factory=dict)
    local: Any = None
    at: float = AT
    deadline: float | None = None
    output: Any = None
    node: str = "work"
    hooks: HookRefs = (HookRef("h"),)
    execution_id: str = "e1"
    spent: list[Spent] = field(default_factory=list)
    launched: list[StartChild] = field(default_factory=list)
    own: Any = None
    said: list[Any] = field(default_factory=list)

    @property
    def scope(self) -> Mapping[str, Any]:
        return {"context": self.context, "input": self.context, "output": self.output}

    def effect_id(self, key: str, suffix: str = "") -> str:
        return f"0/3/{key}.{suffix}" if suffix else f"0/3/{key}"

    def spend(self, spent: Spent) -> None:
        self.spent.append(spent)

    def launch(self, child: StartChild) -> None:
        self.launched.append(child)

    def say(self, *messages: Any) -> None:
        self.said += messages

    @property
    def log_length(self) -> int:
        return len(self.said)

    def after(self, answer: Answer, *, at: float = AT) -> Here:
        """What the op sees when the effects of its answer are answered."""
        assert isinstance(answer, Block), answer
        context = self.context if answer.context is UNSET else answer.context
        assert isinstance(context, Mapping)
        return replace(self, local=answer.local, context=context, at=at)


def here(**context: Any) -> Here:
    return Here(context)


def done(effect_id: str, value: Any = None, *, at: float = AT) -> Done:
    return Done(f"0/3/{effect_id}", value, at)


def failed(effect_id: str, type: str = "Boom", *, at: float = AT, **rest: Any) -> Failed:
    return Failed(f"0/3/{effect_id}", Failure(type=type, message="it failed", **rest), at)


def ids(answer: Answer) -> list[str]:
    """The effects that are asked for, without what is the same for all."""
    assert isinstance(answer, Block), answer
    return [effect.id.removeprefix("0/3/") for effect in answer.effects]
