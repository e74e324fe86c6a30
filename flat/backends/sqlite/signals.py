"""The signals of a SQLite store: the statements, and what they cost.

A signal's row outlives it: consumed, it keeps its id and loses the rest, so that it cannot be sent twice. It then
leaves every index, for all of them are on open or on dead signals. Looking for what an execution may take is one
probe for signals to anybody and one for its own, however long the backlog is; looking for the executions that have
something to take is one step per channel that has signals, not per execution that waits.

Everything in here expects the caller to hold the store's lock, and to have begun a transaction before a write.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from flat.backends.checks import WAITING, check_text, copy_id, readable
from flat.backends.protocols import DeadSignal, Signal

OPEN, SPENT, DEAD = 0, 1, 2

SCHEMA = f"""
CREATE TABLE signals (
    id TEXT PRIMARY KEY, state INTEGER NOT NULL, channel TEXT, addressee TEXT, tick INTEGER, body BLOB,
    created_at REAL, reason TEXT, died_at REAL
) WITHOUT ROWID;
CREATE INDEX signals_open ON signals (channel, addressee, tick) WHERE state = {OPEN};
CREATE INDEX signals_addressee ON signals (addressee) WHERE state = {OPEN} AND addressee IS NOT NULL;
CREATE INDEX signals_dead ON signals (channel, tick) WHERE state = {DEAD};
"""
SEND = f"""
INSERT INTO signals (id, state, channel, addressee, tick, body, created_at)
VALUES (?, {OPEN}, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""
SPEND = f"""
UPDATE signals SET state = {SPENT}, channel = NULL, addressee = NULL, tick = NULL, body = NULL, created_at = NULL
WHERE id = ? AND state = {OPEN}
"""
BURY = f"UPDATE signals SET state = {DEAD}, reason = ?, died_at = ? WHERE id = ? AND state = {OPEN}"
REVIVE = f"UPDATE signals SET state = {OPEN}, reason = NULL, died_at = NULL WHERE id = ? AND state = {DEAD}"

COLUMNS = "id, channel, body, created_at, addressee"
LIST = f"SELECT {COLUMNS} FROM signals WHERE state = {OPEN} {{more}} ORDER BY tick, id LIMIT ?"
TAKEABLE = f"""
SELECT {COLUMNS} FROM (
    SELECT * FROM (
        SELECT {COLUMNS}, tick FROM signals INDEXED BY signals_open
        WHERE state = {OPEN} AND channel = ?1 AND addressee IS NULL ORDER BY tick LIMIT ?3)
    UNION ALL
    SELECT * FROM (
        SELECT {COLUMNS}, tick FROM signals INDEXED BY signals_open
        WHERE state = {OPEN} AND channel = ?1 AND addressee = ?2 ORDER BY tick LIMIT ?3)
) ORDER BY tick, id LIMIT ?3
"""
DEAD_LETTERS = f"""
SELECT {COLUMNS}, reason, died_at FROM signals WHERE state = {DEAD} {{more}} ORDER BY tick, id LIMIT ?
"""
READY = f"""
WITH RECURSIVE
channels (channel) AS (
    SELECT min(channel) FROM signals WHERE state = {OPEN}
    UNION ALL
    SELECT (SELECT min(channel) FROM signals WHERE state = {OPEN} AND channel > channels.channel)
    FROM channels WHERE channels.channel IS NOT NULL
),
heads (channel, since) AS MATERIALIZED (
    SELECT c.channel, s.created_at FROM channels c CROSS JOIN signals s ON s.id = (
        SELECT id FROM signals INDEXED BY signals_open
        WHERE state = {OPEN} AND channel = c.channel AND addressee IS NULL ORDER BY tick LIMIT 1)
),
reasons (num, since) AS (
    SELECT w.num, h.since FROM heads h CROSS JOIN waits w ON w.channel = h.channel
    UNION ALL
    SELECT w.num, s.created_at FROM signals s INDEXED BY signals_addressee
        CROSS JOIN executions x ON x.id = s.addressee
        CROSS JOIN waits w ON w.channel = s.channel AND w.num = x.num
        WHERE s.state = {OPEN} AND s.addressee IS NOT NULL
    UNION ALL
    SELECT num, wake_at FROM (
        SELECT num, wake_at FROM executions WHERE wake_at <= ?1 AND status = '{WAITING}'
        ORDER BY wake_at, num LIMIT ?2)
),
due (num, since) AS (
    SELECT r.num, min(r.since) FROM reasons r CROSS JOIN executions x ON x.num = r.num
    WHERE x.status = '{WAITING}' GROUP BY r.num ORDER BY 2, 1 LIMIT ?2
)
"""


class Mail:
    """Reads and writes signals through one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._tick = 0

    def send(self, signal: Signal) -> bool:
        """Store a signal; False if one of this id was ever sent."""
        # Signals are read in this order. A counter in the database would be one more page to write.
        self._tick = max(self._tick + 1, time.time_ns())
        return self._put(signal, self._tick)

    def _put(self, signal: Signal, tick: int) -> bool:
        row = (signal.signal_id, signal.channel, signal.to, tick, signal.body, signal.created_at)
        return self._execute(SEND, row).rowcount == 1

    def spend(self, signal_id: str) -> bool:
        """Consume a signal; False if it is gone."""
        return self._execute(SPEND, (signal_id,)).rowcount == 1

    def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        for execution_id in to:
            check_text("to", execution_id)
        query = (
            f"SELECT channel, tick, body, created_at, addressee FROM signals WHERE id = ? AND state = {OPEN}"
        )
        found = self._execute(query, (signal_id,)).fetchone()
        if found is None or found[-1] is not None or not to:
            return False
        channel, tick, body, at, _ = found
        self.spend(signal_id)
        for execution_id in dict.fromkeys(to):
            name = copy_id(signal_id, execution_id, self._is_known)
            self._put(
                Signal(signal_id=name, channel=channel, body=body, created_at=at, to=execution_id), tick
            )
        return True

    def _is_known(self, signal_id: str) -> bool:
        return self._execute("SELECT 1 FROM signals WHERE id = ?", (signal_id,)).fetchone() is not None

    def bury(self, signal_id: str, reason: str, at: float) -> bool:
        return self._execute(BURY, (readable(reason), at, signal_id)).rowcount == 1

    def revive(self, signal_id: str) -> bool:
        return self._execute(REVIVE, (signal_id,)).rowcount == 1


def listing(channel: str | None, to: str | None, limit: int | None) -> tuple[str, tuple[Any, ...]]:
    """The query for open signals, and its values."""
    most = -1 if limit is None else limit
    if channel is not None and to is not None:
        return TAKEABLE, (channel, to, most)
    if channel is not None:
        return LIST.format(more="AND channel = ?"), (channel, most)
    if to is not None:
        return LIST.format(more="AND (addressee IS NULL OR addressee = ?)"), (to, most)
    return LIST.format(more=""), (most,)


def dead_letters(channel: str | None, limit: int | None) -> tuple[str, tuple[Any, ...]]:
    """The query for dead letters, and its values."""
    more, values = ("", ()) if channel is None else ("AND channel = ?", (channel,))
    return DEAD_LETTERS.format(more=more), (*values, -1 if limit is None else limit)


def signal_of(row: Sequence[Any]) -> Signal:
    return Signal(signal_id=row[0], channel=row[1], body=row[2], created_at=row[3], to=row[4])


def dead_of(row: Sequence[Any]) -> DeadSignal:
    return DeadSignal(signal=signal_of(row), reason=row[5], at=row[6])
