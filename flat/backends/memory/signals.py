"""The signals of a store in memory: open, dead, and the ids of all that were ever sent."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from flat.backends.checks import copy_id
from flat.backends.protocols import DeadSignal, Signal


@dataclass(frozen=True, slots=True, order=True)
class _Letter:
    """A signal and its place in the order; the copies of one share its place."""

    place: int
    signal_id: str
    signal: Signal


class Mailbox:
    """Signals by id and by channel. Nothing in here awaits."""

    def __init__(self) -> None:
        self._places = 0
        self._open: dict[str, _Letter] = {}
        # Only letters that anybody may take, and letters for one execution, oldest first.
        self._lines: dict[tuple[str, str | None], list[_Letter]] = {}
        self._dead: dict[str, tuple[_Letter, str, float]] = {}
        self._sent: set[str] = set()

    def send(self, signal: Signal) -> bool:
        if signal.signal_id in self._sent:
            return False
        self._places += 1
        self._put(_Letter(self._places, signal.signal_id, signal))
        return True

    def _put(self, letter: _Letter) -> None:
        signal = letter.signal
        self._sent.add(letter.signal_id)
        self._open[letter.signal_id] = letter
        insort(self._lines.setdefault((signal.channel, signal.to), []), letter)

    def _take(self, signal_id: str) -> _Letter:
        letter = self._open.pop(signal_id)
        key = letter.signal.channel, letter.signal.to
        self._lines[key].remove(letter)
        if not self._lines[key]:
            del self._lines[key]
        return letter

    def has(self, signal_ids: Sequence[str]) -> bool:
        return all(signal_id in self._open for signal_id in signal_ids)

    def spend(self, signal_id: str) -> None:
        self._take(signal_id)

    def open(self, channel: str | None, to: str | None) -> Sequence[Signal]:
        if channel is not None and to is not None:
            found = [*self._lines.get((channel, None), ()), *self._lines.get((channel, to), ())]
        else:
            found = [
                letter
                for letter in self._open.values()
                if channel in (None, letter.signal.channel) and (to is None or letter.signal.to in (None, to))
            ]
        return [letter.signal for letter in sorted(found)]

    def heads(self, channel: str, waiting: Collection[str]) -> Iterator[tuple[str, float]]:
        """Who of those that wait on a channel has a signal to take, and since when."""
        common = self._lines.get((channel, None))
        for execution_id in waiting:
            lines = common, self._lines.get((channel, execution_id))
            if found := [line[0] for line in lines if line]:
                yield execution_id, min(found).signal.created_at

    def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        letter = self._open.get(signal_id)
        if letter is None or letter.signal.to is not None or not to:
            return False
        self._take(signal_id)
        for execution_id in dict.fromkeys(to):
            name = copy_id(signal_id, execution_id, self._sent.__contains__)
            self._put(_Letter(letter.place, name, replace(letter.signal, signal_id=name, to=execution_id)))
        return True

    def bury(self, signal_id: str, reason: str, at: float) -> bool:
        if signal_id not in self._open:
            return False
        self._dead[signal_id] = (self._take(signal_id), reason, at)
        return True

    def dead(self, channel: str | None) -> Sequence[DeadSignal]:
        found = sorted(self._dead.values())
        return [
            DeadSignal(signal=letter.signal, reason=reason, at=at)
            for letter, reason, at in found
            if channel in (None, letter.signal.channel)
        ]

    def revive(self, signal_id: str) -> bool:
        if (found := self._dead.pop(signal_id, None)) is None:
            return False
        self._put(found[0])
        return True
