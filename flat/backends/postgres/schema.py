"""The tables and functions of a PostgreSQL store, and how a connection to one is opened.

A store is a schema of a database, `flat` unless the URL says otherwise, made when it is first used. An advisory
lock keeps two processes from making it at once, and the table `meta` says which format it has.

Ids, channels and digests may be any text, so what is indexed is their `key` (see `postgres.names`); the text itself
stands beside it. Tokens and the order of signals come from sequences: a token is never given out twice, not even
for an execution that is deleted and born again, and no host's clock decides which signal is older.

A commit is one call of `write`, which takes any number of commits and starts: their facts as JSON, and all their
bytes in one array that the facts point into. Nothing in it can fail after the first change for a member but the
whole statement with it, so a refused member leaves no trace and disturbs nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flat.backends.postgres.answers import Refused
from flat.backends.postgres.pool import Database
from flat.backends.postgres.signals import SCHEMA as SIGNALS
from flat.backends.postgres.url import Address
from flat.errors import BackendError

if TYPE_CHECKING:
    from psycopg import Connection

    from flat.backends.postgres.link import Link

VERSION = 1
NO_SUCH_TABLE = "42P01"
LOCK = 0x666C6174
"""`flat` in ASCII: the advisory lock under which a schema is made."""

EXECUTIONS = """
CREATE SEQUENCE tokens;
CREATE TABLE executions (
    num BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key BYTEA NOT NULL UNIQUE, id TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    parent_key BYTEA, parent TEXT, created_at FLOAT8 NOT NULL, stamp BIGINT NOT NULL, program TEXT NOT NULL,
    cancel BOOLEAN NOT NULL DEFAULT false, wake_at FLOAT8, channels TEXT[] NOT NULL, status TEXT NOT NULL,
    owner_key BYTEA, owner TEXT, token BIGINT NOT NULL, updated_at FLOAT8 NOT NULL, seq INT NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX executions_wake_at ON executions (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX executions_parent ON executions (parent_key, num) WHERE parent_key IS NOT NULL;
CREATE INDEX executions_cancel ON executions (owner_key) WHERE cancel;
CREATE TABLE bodies (
    num BIGINT NOT NULL, seq INT NOT NULL, base BOOLEAN NOT NULL, stamp BIGINT NOT NULL, body BYTEA NOT NULL,
    PRIMARY KEY (num, seq)
);
CREATE TABLE log (
    num BIGINT NOT NULL, seq INT NOT NULL, place INT NOT NULL, body BYTEA NOT NULL, PRIMARY KEY (num, seq, place)
);
CREATE TABLE waits (channel_key BYTEA NOT NULL, num BIGINT NOT NULL, PRIMARY KEY (channel_key, num));
CREATE INDEX waits_num ON waits (num);
CREATE TABLE owners (
    key BYTEA PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, pid BIGINT NOT NULL,
    boot TEXT NOT NULL, started TEXT NOT NULL, seen FLOAT8 NOT NULL, ttl FLOAT8 NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE kept (kind "char" NOT NULL, key BYTEA NOT NULL, body BYTEA NOT NULL, PRIMARY KEY (kind, key));
"""

BEAT = """
CREATE FUNCTION beat(
    this_key BYTEA, this_owner TEXT, this_host TEXT, this_pid BIGINT, this_boot TEXT, this_started TEXT,
    now FLOAT8, lasting FLOAT8
) RETURNS VOID LANGUAGE sql AS $$
    INSERT INTO owners VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (key) DO UPDATE
    SET host = $3, pid = $4, boot = $5, started = $6, seen = $7, ttl = $8
$$;
"""

ACQUIRE = """
CREATE FUNCTION acquire(this_key BYTEA, new_owner_key BYTEA, new_owner TEXT, gone BIGINT)
RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    t BIGINT;
BEGIN
    -- Free, ours, or of a token whose owner is known to be gone. Nothing is asked of the table of owners here: whoever
    -- waits for the row's lock would be told how that table was before, and take the lease from who has just got it.
    UPDATE executions SET owner_key = new_owner_key, owner = new_owner, token = nextval('tokens')
    WHERE key = this_key AND (owner_key IS NULL OR owner_key = new_owner_key OR token = gone) RETURNING token INTO t;
    RETURN coalesce(t, 0);
END $$;
"""

BEAR = """
CREATE FUNCTION bear(b JSONB, items BYTEA[], new_stamp BIGINT, new_owner_key BYTEA, new_owner TEXT)
RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    n BIGINT;
    t BIGINT;
BEGIN
    INSERT INTO executions (
        key, id, name, kind, parent_key, parent, created_at, stamp, program, wake_at, channels, status,
        owner_key, owner, token, updated_at, seq
    ) VALUES (
        items[(b->>'key')::int], b->>'id', b->>'name', b->>'kind', items[(b->>'parent_key')::int], b->>'parent',
        (b->>'created_at')::float8, new_stamp, b->>'program', (b->>'wake_at')::float8,
        ARRAY(SELECT jsonb_array_elements_text(b->'channels')), b->>'status',
        new_owner_key, new_owner, nextval('tokens'), (b->>'updated_at')::float8, 0
    ) ON CONFLICT (key) DO NOTHING RETURNING num, token INTO n, t;
    IF n IS NULL THEN
        -- Ours, if this is a repetition of a statement whose answer was lost.
        SELECT token INTO t FROM executions WHERE key = items[(b->>'key')::int] AND stamp = new_stamp;
        RETURN coalesce(t, 0);
    END IF;
    INSERT INTO bodies VALUES (n, 0, true, new_stamp, items[(b->>'body')::int]);
    IF b ? 'waits' THEN
        INSERT INTO waits SELECT DISTINCT items[i::int], n FROM jsonb_array_elements_text(b->'waits') AS i
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN t;
END $$;
"""

WRITE = """
CREATE FUNCTION write(doc JSONB, data BYTEA[]) RETURNS BIGINT[] LANGUAGE plpgsql AS $$
DECLARE
    items BYTEA[] := data;
    m JSONB;
    h JSONB;
    n BIGINT;
    wanted INT;
    locked INT;
    this_seq INT;
    results BIGINT[] := '{}';
BEGIN
    FOR m IN SELECT value FROM jsonb_array_elements(doc) LOOP
        IF m ? 'birth' THEN
            IF m ? 'beat' THEN
                PERFORM beat(
                    items[(m->>'owner_key')::int], m->>'owner', b.host, b.pid, b.boot, b.started, b.seen, b.ttl)
                FROM jsonb_to_record(m->'beat') AS b (
                    host TEXT, pid BIGINT, boot TEXT, started TEXT, seen FLOAT8, ttl FLOAT8);
            END IF;
            results := results || bear(
                m->'birth', items, (m->>'stamp')::bigint, items[(m->>'owner_key')::int], m->>'owner');
            CONTINUE;
        END IF;
        IF m ? 'acquire' THEN
            IF m ? 'beat' THEN
                PERFORM beat(
                    items[(m->>'owner_key')::int], m->>'owner', b.host, b.pid, b.boot, b.started, b.seen, b.ttl)
                FROM jsonb_to_record(m->'beat') AS b (
                    host TEXT, pid BIGINT, boot TEXT, started TEXT, seen FLOAT8, ttl FLOAT8);
            END IF;
            results := results || acquire(
                items[(m->>'acquire')::int], items[(m->>'owner_key')::int], m->>'owner', (m->>'gone')::bigint);
            CONTINUE;
        END IF;
        IF m ? 'signal' THEN
            h := m->'signal';
            results := results || CASE WHEN send(h->>'id', items[(h->>'key')::int], h->>'channel',
                items[(h->>'channel_key')::int], h->>'to', items[(h->>'to_key')::int], items[(h->>'body')::int],
                (h->>'at')::float8, (m->>'stamp')::bigint) THEN 1::bigint ELSE 0 END;
            CONTINUE;
        END IF;
        this_seq := (m->>'seq')::int;
        SELECT num INTO n FROM executions WHERE key = items[(m->>'key')::int]
            AND token = (m->>'token')::bigint AND seq = this_seq - 1 FOR NO KEY UPDATE;
        IF n IS NULL THEN
            -- Stored, if this is a repetition of a statement whose answer was lost.
            PERFORM 1 FROM executions e JOIN bodies b ON b.num = e.num AND b.seq = this_seq
                WHERE e.key = items[(m->>'key')::int] AND b.stamp = (m->>'stamp')::bigint;
            results := results || CASE WHEN FOUND THEN 1::bigint ELSE 0 END;
            CONTINUE;
        END IF;
        IF m ? 'consume' THEN
            wanted := jsonb_array_length(m->'consume');
            SELECT count(*) INTO locked FROM (
                SELECT 1 FROM signals WHERE state = 0
                    AND key = ANY (ARRAY(SELECT items[i::int] FROM jsonb_array_elements_text(m->'consume') AS i))
                ORDER BY key FOR UPDATE) AS found;
            IF locked <> wanted THEN
                results := results || -1::bigint;
                CONTINUE;
            END IF;
            PERFORM spend(items[i::int], (m->>'stamp')::bigint)
                FROM jsonb_array_elements_text(m->'consume') AS i;
        END IF;
        h := m->'head';
        IF h IS NULL THEN
            UPDATE executions SET seq = this_seq, updated_at = (m->>'at')::float8 WHERE num = n;
        ELSE
            UPDATE executions SET seq = this_seq, updated_at = (m->>'at')::float8, status = h->>'status',
                wake_at = (h->>'wake_at')::float8, program = coalesce(h->>'program', program),
                channels = ARRAY(SELECT jsonb_array_elements_text(h->'channels')),
                cancel = cancel AND NOT (h->>'answered')::boolean
            WHERE num = n;
            DELETE FROM waits WHERE num = n;
            IF h ? 'waits' THEN
                INSERT INTO waits SELECT DISTINCT items[i::int], n FROM jsonb_array_elements_text(h->'waits') AS i;
            END IF;
        END IF;
        INSERT INTO bodies VALUES
            (n, this_seq, (m->>'base')::boolean, (m->>'stamp')::bigint, items[(m->>'body')::int]);
        IF m ? 'log' THEN
            INSERT INTO log SELECT n, this_seq, place, items[i::int]
            FROM jsonb_array_elements_text(m->'log') WITH ORDINALITY AS rows (i, place);
        END IF;
        IF m ? 'blobs' THEN
            INSERT INTO kept SELECT 'b', items[(pair->>0)::int], items[(pair->>1)::int]
            FROM jsonb_array_elements(m->'blobs') AS pair ORDER BY 2 ON CONFLICT DO NOTHING;
        END IF;
        IF m ? 'send' THEN
            PERFORM send(s->>'id', items[(s->>'key')::int], s->>'channel', items[(s->>'channel_key')::int],
                s->>'to', items[(s->>'to_key')::int], items[(s->>'body')::int], (s->>'at')::float8,
                (m->>'stamp')::bigint)
            FROM jsonb_array_elements(m->'send') AS s;
        END IF;
        IF m ? 'births' THEN
            PERFORM bear(b, items, (m->>'stamp')::bigint, NULL, NULL) FROM jsonb_array_elements(m->'births') AS b;
        END IF;
        IF m ? 'release' THEN
            UPDATE executions SET owner = NULL, owner_key = NULL, token = nextval('tokens') WHERE num = n;
        END IF;
        results := results || 1::bigint;
    END LOOP;
    RETURN results;
END $$;
"""

Part = tuple[str, int, Sequence[str]]
"""Tables that are made together: a name, the number of their format, and the statements that make them."""
STORE: Part = ("store", VERSION, (EXECUTIONS, SIGNALS, BEAT, ACQUIRE, BEAR, WRITE))

# What our statements count on, whatever the role or the database has set.
SETTINGS = {
    "default_transaction_isolation": "read committed", "default_transaction_read_only": "off",
    "lock_timeout": "20s", "client_min_messages": "warning",
}  # fmt: skip


def open_database(address: Address, part: Part) -> Database:
    """The database at an address. Its tables are made by the first connection, if need be; nothing is done before."""
    psycopg = client()
    ready: list[bool] = []
    settings = {"search_path": quoted(address.schema), **SETTINGS, **address.settings}
    options = " ".join(f"-c {name}={_option(value)}" for name, value in settings.items())

    def connect() -> Connection[Any]:
        # One that takes longer is given up before; this is for the thread that it waits in.
        within = max(2, math.ceil(address.timeout))
        made: Connection[Any] = psycopg.connect(
            address.conninfo(), autocommit=True, connect_timeout=within, application_name="flat",
            client_encoding="UTF8", options=f"{address.options} {options}", keepalives_idle=30,
            keepalives_interval=10, keepalives_count=3,
        )  # fmt: skip
        return made

    async def setup(link: Link) -> None:
        if not ready:
            await _make(link, address, part)
            ready.append(True)

    return Database(connect, setup, address.place, address.timeout)


def _option(value: str) -> str:
    """A value as it stands in libpq's `options`, where a space ends it."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def client() -> Any:
    """The module psycopg. Raises `BackendError` when it is not installed."""
    try:
        import psycopg
    except ImportError as error:
        raise BackendError(
            f"stores in PostgreSQL need psycopg, which cannot be imported ({error}): pip install 'flat[postgres]'"
        ) from error
    return psycopg


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def _make(link: Link, address: Address, part: Part) -> None:
    """Make the tables of a part unless they are there. Whoever is interrupted closes the connection."""
    name, version, statements = part
    if await _is_made(link, address, name, version):
        return
    # The lock is the session's: looking for a table that is not there would end a transaction.
    await link.rows("SELECT pg_advisory_lock($1::int, hashtext($2))", LOCK, address.schema)
    if not await _is_made(link, address, name, version):
        await link.run("BEGIN")
        await link.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(address.schema)}")
        await link.run("CREATE TABLE IF NOT EXISTS meta (part TEXT PRIMARY KEY, version INT NOT NULL)")
        for statement in statements:
            await link.run(statement)
        await link.rows("INSERT INTO meta VALUES ($1, $2)", name, version)
        await link.run("COMMIT")
    await link.rows("SELECT pg_advisory_unlock($1::int, hashtext($2))", LOCK, address.schema)


async def _is_made(link: Link, address: Address, name: str, version: int) -> bool:
    """Whether a part is there. Raises `BackendError` when it has another format than ours."""
    try:
        found = await link.rows("SELECT version FROM meta WHERE part = $1", name)
    except Refused as error:
        if error.code != NO_SUCH_TABLE:
            raise
        return False
    if found and found[0][0] != version:
        raise BackendError(
            f"{address.place} has {name} format {found[0][0]}, this version of flat writes format {version}; "
            "use the version of flat that wrote it, or another schema (?schema=...)"
        )
    return bool(found)
