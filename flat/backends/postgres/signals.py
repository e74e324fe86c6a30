"""The signals of a PostgreSQL store: their table, and the statements that read and move them.

A signal's row outlives it: consumed, it keeps its key and loses the rest, so that it cannot be sent twice. It then
leaves every index, for all of them are on open or on dead signals. Looking for the executions that have something
to take is one step per channel that has signals, not per execution that waits.

Whatever moves a signal leaves its random stamp, so that the same statement, sent again because its answer was lost,
finds that it was itself that moved it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flat.backends.checks import WAITING
from flat.backends.postgres.names import key
from flat.backends.protocols import DeadSignal, Signal

OPEN, SPENT, DEAD = 0, 1, 2

SCHEMA = """
CREATE SEQUENCE ticks;
CREATE TABLE signals (
    key BYTEA PRIMARY KEY, id TEXT NOT NULL, state SMALLINT NOT NULL, stamp BIGINT NOT NULL, tick BIGINT,
    channel_key BYTEA, channel TEXT, to_key BYTEA, addressee TEXT, created_at FLOAT8, body BYTEA,
    reason TEXT, died_at FLOAT8
) WITH (fillfactor = 80);
CREATE INDEX signals_open ON signals (channel_key, to_key, tick) WHERE state = 0;
CREATE INDEX signals_order ON signals (tick) WHERE state = 0;
CREATE INDEX signals_addressee ON signals (to_key) WHERE state = 0 AND to_key IS NOT NULL;
CREATE INDEX signals_dead ON signals (tick) WHERE state = 2;

-- Who listens is woken by the topic alone; a schema's name may be longer than a topic's.
CREATE FUNCTION topic() RETURNS TEXT LANGUAGE sql AS $$ SELECT 'flat_' || md5(current_schema()) $$;
CREATE FUNCTION wake() RETURNS VOID LANGUAGE sql AS $$ SELECT pg_notify(topic(), '') $$;

CREATE FUNCTION send(
    new_id TEXT, new_key BYTEA, new_channel TEXT, new_channel_key BYTEA, new_to TEXT, new_to_key BYTEA,
    new_body BYTEA, at FLOAT8, new_stamp BIGINT
) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO signals (key, id, state, stamp, tick, channel_key, channel, to_key, addressee, created_at, body)
    VALUES (new_key, new_id, 0, new_stamp, nextval('ticks'), new_channel_key, new_channel, new_to_key, new_to,
            at, new_body)
    ON CONFLICT (key) DO NOTHING;
    IF FOUND THEN
        PERFORM wake();
        RETURN true;
    END IF;
    RETURN EXISTS (SELECT 1 FROM signals WHERE key = new_key AND stamp = new_stamp);
END $$;

CREATE FUNCTION spend(this_key BYTEA, new_stamp BIGINT) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    UPDATE signals SET state = 1, stamp = new_stamp, tick = NULL, channel_key = NULL, channel = NULL,
        to_key = NULL, addressee = NULL, created_at = NULL, body = NULL
    WHERE key = this_key AND (state = 0 OR (state = 1 AND stamp = new_stamp));
    RETURN FOUND;
END $$;

CREATE FUNCTION fan_out(
    this_key BYTEA, new_stamp BIGINT, addressees TEXT[], to_keys BYTEA[], ids TEXT[], keys BYTEA[]
) RETURNS INT LANGUAGE plpgsql AS $$
DECLARE
    s signals;
    made INT;
BEGIN
    -- 0: gone; 1: done; 2: one of the copies' ids is taken, and nothing was written.
    SELECT * INTO s FROM signals WHERE key = this_key FOR UPDATE;
    IF s.state = 1 AND s.stamp = new_stamp THEN
        RETURN 1;
    END IF;
    IF s.state IS DISTINCT FROM 0 OR s.to_key IS NOT NULL THEN
        RETURN 0;
    END IF;
    IF EXISTS (SELECT 1 FROM signals WHERE key = ANY (keys)) THEN
        RETURN 2;
    END IF;
    INSERT INTO signals (key, id, state, stamp, tick, channel_key, channel, to_key, addressee, created_at, body)
    SELECT k, i, 0, new_stamp, s.tick, s.channel_key, s.channel, t, a, s.created_at, s.body
    FROM unnest(addressees, to_keys, ids, keys) AS copy (a, t, i, k)
    ON CONFLICT (key) DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made <> cardinality(keys) THEN
        -- Somebody was quicker with one of the ids: all is undone, and tried again.
        RAISE EXCEPTION 'an id was taken meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    PERFORM spend(this_key, new_stamp);
    RETURN 1;
END $$;
"""
SPEND = "SELECT spend($1, $2)"
FAN_OUT = "SELECT fan_out($1, $2, $3, $4, $5, $6)"
KNOWN = "SELECT id FROM signals WHERE key = ANY ($1::bytea[])"
BURY = """
UPDATE signals SET state = 2, stamp = $2, reason = $3, died_at = $4
WHERE key = $1 AND (state = 0 OR (state = 2 AND stamp = $2)) RETURNING 1
"""
REVIVE = """
UPDATE signals SET state = 0, stamp = $2, reason = NULL, died_at = NULL
WHERE key = $1 AND (state = 2 OR (state = 0 AND stamp = $2)) RETURNING 1
"""

COLUMNS = "id, channel, body, created_at, addressee"
LIST = f"SELECT {COLUMNS} FROM signals WHERE state = 0 {{more}} ORDER BY tick, key LIMIT $1"
TAKEABLE = f"""
SELECT {COLUMNS} FROM (
    (SELECT * FROM signals WHERE state = 0 AND channel_key = $2 AND to_key IS NULL ORDER BY tick LIMIT $1)
    UNION ALL
    (SELECT * FROM signals WHERE state = 0 AND channel_key = $2 AND to_key = $3 ORDER BY tick LIMIT $1)
) AS takeable ORDER BY tick, key LIMIT $1
"""
DEAD_LETTERS = f"""
SELECT {COLUMNS}, reason, died_at FROM signals WHERE state = 2 {{more}} ORDER BY tick, key LIMIT $1
"""
# OFFSET 0 keeps the planner from reading all that wait, which it likes to when it has no statistics yet.
READY = f"""
WITH RECURSIVE
channels (channel_key) AS (
    (SELECT channel_key FROM signals WHERE state = 0 ORDER BY channel_key LIMIT 1)
    UNION ALL
    SELECT (SELECT s.channel_key FROM signals s WHERE s.state = 0 AND s.channel_key > c.channel_key
            ORDER BY s.channel_key LIMIT 1)
    FROM channels c WHERE c.channel_key IS NOT NULL
),
heads (channel_key, since) AS MATERIALIZED (
    SELECT c.channel_key, s.created_at FROM channels c CROSS JOIN LATERAL (
        SELECT created_at FROM signals WHERE state = 0 AND channel_key = c.channel_key AND to_key IS NULL
        ORDER BY tick LIMIT 1) AS s
),
reasons (num, since) AS (
    SELECT w.num, h.since FROM heads h CROSS JOIN LATERAL (
        SELECT num FROM waits WHERE channel_key = h.channel_key OFFSET 0) AS w
    UNION ALL
    SELECT w.num, s.created_at FROM signals s JOIN executions x ON x.key = s.to_key
        JOIN waits w ON w.channel_key = s.channel_key AND w.num = x.num
        WHERE s.state = 0 AND s.to_key IS NOT NULL
    UNION ALL
    (SELECT num, wake_at FROM executions WHERE wake_at <= $1 AND status = '{WAITING}'
     ORDER BY wake_at, num LIMIT $2)
),
due (num, since) AS (
    SELECT r.num, min(r.since) FROM reasons r CROSS JOIN LATERAL (
        SELECT FROM executions WHERE num = r.num AND status = '{WAITING}' OFFSET 0) AS x
    GROUP BY r.num ORDER BY 2, 1 LIMIT $2
)
"""


def listing(channel: str | None, to: str | None, limit: int | None) -> tuple[str, tuple[Any, ...]]:
    """The query for open signals, and its values."""
    if channel is not None and to is not None:
        return TAKEABLE, (limit, key(channel), key(to))
    if channel is not None:
        return LIST.format(more="AND channel_key = $2"), (limit, key(channel))
    if to is not None:
        return LIST.format(more="AND (to_key IS NULL OR to_key = $2)"), (limit, key(to))
    return LIST.format(more=""), (limit,)


def dead_letters(channel: str | None, limit: int | None) -> tuple[str, tuple[Any, ...]]:
    """The query for dead letters, and its values."""
    more, values = ("", ()) if channel is None else ("AND channel_key = $2", (key(channel),))
    return DEAD_LETTERS.format(more=more), (limit, *values)


def signal_of(row: Sequence[Any]) -> Signal:
    return Signal(signal_id=row[0], channel=row[1], body=row[2], created_at=row[3], to=row[4])


def dead_of(row: Sequence[Any]) -> DeadSignal:
    return DeadSignal(signal=signal_of(row), reason=row[5], at=row[6])
