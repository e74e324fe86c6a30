"""Observers: code that watches executions and cannot change anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

log = logging.getLogger("flat.observers")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened in an execution.

    `kind` is one of `started`, `resumed`, `enter`, `leave`, `perform`, `answered`, `failed_effect`, `in_doubt`,
    `token`, `stopped`. `facts` depend on the kind and are plain data.
    """

    kind: str
    execution_id: str
    at: float
    node: str = ""
    step: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """Anything that wants to know."""

    def notify(self, notice: Notice) -> None: ...


class Observers:
    """Several observers. One that raises is switched off and said so once: it must not hurt what it watches."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def notify(self, notice: Notice) -> None:
        for observer in tuple(self._observers):
            try:
                observer.notify(notice)
            except Exception:
                self._observers.remove(observer)
                log.exception("observer %r raised and is switched off", observer)
