"""Executions go out into a file and in again: nothing is lost, nothing half done, nothing damaged comes in."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_machines import machine

from flat import FileStore, Machine, MemoryStore, Runtime, SQLiteStore
from flat.backends.liveness import this_process
from flat.backends.protocols import Birth, CheckpointStore, Commit, Execution, Head, Signal
from flat.core.storable import BLOB_SIZE
from flat.drivers.keeper import IMPORTING
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, IncompatibleSnapshot
from flat.runtime.transfer import (
    Exported,
    TakenIds,
    check_file,
    everything,
    export_runs,
    families,
    import_runs,
)
from flat.runtime.transfer_file import BadExport
from flat.runtime.transfer_out import _looked_up_lengths, _told_lengths
from flat.runtime.trees import create_machine, run_machine
from flat.testing.agents import ScriptedAgent
from flat.testing.clock import VirtualClock
from flat.testing.executor import ScriptedExecutor
from flat.testing.store_case import ALICE, TTL, begin, birth, signal, step, waiting
from flat.tree import Charter, Instance, Node

pytestmark = pytest.mark.anyio
NOW = 2000.0


def clock() -> float:
    return NOW


async def exported(store: CheckpointStore, *ids: str) -> io.BytesIO:
    """The file of these executions, or of everything."""
    out = io.BytesIO()
    if ids:
        await export_runs(store, await families(store, ids), out, now=clock)
    else:
        await export_runs(store, await everything(store), out, whole=True, now=clock)
    out.seek(0)
    return out


async def dump(store: CheckpointStore) -> dict[str, Any]:
    """All that a store tells of itself, but for who owns what, and for times that not all keep to the last digit."""
    found: dict[str, Any] = {"order": [e.execution_id async for e in store.find()]}
    for id_ in found["order"]:
        e = await store.get(id_)
        assert e is not None
        columns = {
            name: getattr(e, name)
            for name in ("name", "kind", "program", "status", "seq", "created_at", "parent", "wake_at", "channels")
        }  # fmt: skip
        bodies = list(await store.bodies(id_))
        logs = []
        for seq, _, _ in bodies:
            stored = await store.load(id_, at=seq)
            assert stored is not None
            logs.append(list(stored.log))
        found[id_] = columns, bodies, logs, await store.get_config(e.program)
    found["signals"] = list(await store.signals())
    found["dead"] = list(await store.dead())
    return found


# -- the identity ------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
times = st.integers(0, 10**9).map(lambda ms: 1000 + ms / 1000)
bodies = st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode))
columns = st.fixed_dictionaries(
    {
        "name": text,
        "kind": st.sampled_from(["yaml", "tree"]),
        "program": st.sampled_from(["p1", "p2", "lost"]),
        "status": st.sampled_from(["running", "waiting", "done", "failed", "in_doubt"]),
        "channels": st.lists(text, max_size=3, unique=True).map(tuple),
        "wake_at": st.none() | times,
    }
)
commits = st.fixed_dictionaries(
    {
        "body": bodies,
        "base": st.booleans(),
        "blob": st.none() | st.binary(min_size=1, max_size=60),
        "log": st.lists(bodies, max_size=3),
    }
)
executions = st.lists(
    st.tuples(text, columns, st.lists(commits, max_size=6)), max_size=4, unique_by=lambda e: e[0]
)
mail = st.lists(st.tuples(text, text, bodies, st.booleans(), times), max_size=6, unique_by=lambda s: s[0])  # fmt: skip


async def generate(store: CheckpointStore, contents: Any, letters: Any) -> None:
    """Put generated contents into a store, as a driver does it."""
    for digest in ("p1", "p2"):
        await store.put_config(digest, b"program \xff" + digest.encode())
    parent = None
    for number, (id_, facts, moves) in enumerate(contents):
        at = 1000.0 + number
        alone = not moves
        head = facts if alone else {**facts, "status": "running", "wake_at": None, "channels": ()}
        new = Execution(execution_id=id_, seq=0, created_at=at, updated_at=at, parent=parent, **head)
        assert await store.create(Birth(execution=new, body=b'{"log_length":0}'))
        if not alone:
            lease = await store.acquire(id_, ALICE, now=at, ttl=TTL)
            for seq, move in enumerate(moves, 1):
                last = seq == len(moves)
                digest = f"d{hash(move['blob']):x}" if move["blob"] else ""
                body = b'{"$":["blob","%s"]}' % digest.encode() if digest else move["body"]
                await store.commit(
                    Commit(
                        lease=lease, seq=seq, at=at + seq, body=body, base=move["base"], log=move["log"],
                        head=Head(status=facts["status"], wake_at=facts["wake_at"], channels=facts["channels"])
                        if last else None,
                        blobs={digest: move["blob"]} if digest else {}, release=last,
                    )
                )  # fmt: skip
        parent = id_ if number % 2 == 0 else None
    for id_, channel, body, buried, at in letters:
        await store.send(Signal(signal_id=id_, channel=channel, body=body, created_at=at))
        if buried:
            await store.bury(id_, "nobody \ud800 came", at + 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=executions, letters=mail, kinds=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_export_and_import_are_the_identity(
    contents: Any, letters: Any, kinds: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stores")
    openers: list[Callable[[str], CheckpointStore]] = [
        lambda name: MemoryStore(),
        lambda name: SQLiteStore(folder / f"{name}.db"),
        lambda name: FileStore(folder / name),
    ]

    async def there_and_back() -> None:
        one, two = openers[kinds[0]]("one"), openers[kinds[1]]("two")
        await generate(one, contents, letters)
        file = await exported(one)
        told = await import_runs(two, file, now=clock)
        assert await dump(two) == await dump(one)
        assert told.executions == len(contents)
        for id_, _, _ in contents:
            there, here = await one.get(id_), await two.get(id_)
            assert there is not None
            assert here is not None
            assert here.updated_at == pytest.approx(there.updated_at, abs=0.001)
        again = await exported(two)
        # The order in which `signals` gives several channels is the store's own.
        assert sorted(_without_sums(again)) == sorted(_without_sums(file))
        for line in file.getvalue().splitlines():
            if (record := orjson.loads(line))["record"] == "blob":
                assert (
                    await two.get_blob(record["digest"]) == await one.get_blob(record["digest"]) is not None
                )
        await one.close()
        await two.close()

    anyio.run(there_and_back)


def _without_sums(file: io.BytesIO) -> list[bytes]:
    found = [orjson.loads(line) for line in file.getvalue().splitlines()]
    for record in found:
        del record["sum"]
        if "updated_at" in record:
            record["updated_at"] = round(record["updated_at"], 3)
    return [orjson.dumps(record) for record in found]


# -- real executions ---------------------------------------------------------------------------------


def asking(*answers: str, **context: Any) -> Machine:
    """A machine of two states that ask one agent each."""

    def state(key: str, to: str, **more: Any) -> dict[str, Any]:
        keep = {key: "{{ output.content }}"}
        return {"agent": "echo", "output_to_context": keep, "transitions": [{"to": to}], **more}

    return machine(
        {
            "one": state("a", "two", type="initial"),
            "two": state("b", "end"),
            "end": {"type": "final", "output": {"a": "{{ context.a }}", "b": "{{ context.b }}"}},
        },
        context=context,
        answering={"echo": ScriptedAgent(*answers)},
    )


@pytest.fixture(params=["memory", "file", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CheckpointStore]:
    made: dict[str, Callable[[], CheckpointStore]] = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "target"),
        "sqlite": lambda: SQLiteStore(tmp_path / "target.db"),
    }
    opened = made[request.param]()
    yield opened
    await opened.close()


async def family(store: CheckpointStore) -> None:
    """top → middle → leaf, which waits; and another, alone. A signal waits for the leaf, and one is dead."""
    for id_, parent in (("top", None), ("middle", "top"), ("leaf", "middle"), ("other", None)):
        assert await store.create(birth(id_, parent=parent, program=f"of {id_}"))
        await store.put_config(f"of {id_}", id_.encode())
    lease = await store.acquire("leaf", ALICE, now=1000.0, ttl=TTL)
    await store.commit(step(lease, 1, head=waiting("inbox"), release=True))
    await store.send(signal("for the leaf", "elsewhere", to="leaf"))
    await store.send(signal("for anybody", "inbox"))
    await store.send(signal("for others", "outbox"))
    await store.send(signal("lost", "inbox"))
    await store.bury("lost", "nobody came", 1600.0)


async def test_a_member_takes_its_whole_family_along(store: CheckpointStore) -> None:
    source = MemoryStore()
    await family(source)
    told = await import_runs(store, await exported(source, "middle"), now=clock)
    assert [e.execution_id async for e in store.find()] == ["leaf", "middle", "top"]
    assert [s.signal_id for s in await store.signals("elsewhere")] == ["for the leaf"]
    assert [s.signal_id for s in await store.signals()] in (
        ["for the leaf", "for anybody"],
        ["for anybody", "for the leaf"],
    )
    assert [(d.signal.signal_id, d.reason, d.at) for d in await store.dead()] == [
        ("lost", "nobody came", 1600.0)
    ]
    assert (told.executions, told.commits, told.signals, told.dead) == (3, 4, 2, 1)
    assert await store.get_config("of leaf") == b"leaf"
    assert await store.get_config("of other") is None
    assert [e.execution_id for e in await store.ready(now=0.0)] == ["leaf"]


async def test_large_texts_travel_once_and_the_execution_reads_the_same(store: CheckpointStore) -> None:
    long = "many words " * (BLOB_SIZE // 8)
    made = asking(long, long)
    source = MemoryStore()
    async with Runtime(source) as runtime:
        outcome = await runtime.start(made, execution_id="e")
        snapshots = await runtime.snapshots("e")
    assert outcome.output == {"a": long, "b": long}
    file = await exported(source)
    assert file.getvalue().count(long.encode()) == 1
    await import_runs(store, file, now=clock)
    async with Runtime(store) as runtime:
        assert await runtime.snapshots("e") == snapshots
        assert (await runtime.resume("e", made)).output == outcome.output


# -- what is refused -----------------------------------------------------------------------------------


async def small_file() -> list[bytes]:
    source = MemoryStore()
    await family(source)
    return (await exported(source)).getvalue().splitlines(keepends=True)


async def refusal(lines: list[bytes]) -> BadExport:
    store = MemoryStore()
    with pytest.raises(BadExport) as caught:
        await import_runs(store, io.BytesIO(b"".join(lines)), now=clock)
    assert repr(store) == "MemoryStore(0 executions)"
    assert not await store.signals()
    return caught.value


async def test_a_file_cut_off_anywhere_is_refused() -> None:
    lines = await small_file()
    whole = b"".join(lines)
    for end in range(1, len(whole) - 1, 7):
        error = await refusal([whole[:end]])
        assert error.line == max(1, whole[:end].count(b"\n") + (whole[end - 1 : end] != b"\n"))
        assert "cut off" in str(error) or "not written by" in str(error)
    assert "empty" in str(await refusal([]))


async def test_an_altered_line_is_named() -> None:
    lines = await small_file()
    for number, line in enumerate(lines, 1):
        for place in (3, 12, len(line) // 2, len(line) - 3):
            altered = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
            error = await refusal([*lines[: number - 1], altered, *lines[number:]])
            assert error.line == number, error


async def test_lines_left_out_repeated_or_moved_are_noticed() -> None:
    lines = await small_file()
    for number in range(1, len(lines)):
        assert (await refusal(lines[: number - 1] + lines[number:])).line == number
        assert (await refusal([*lines[:number], lines[number - 1], *lines[number:]])).line == number + 1
    assert (await refusal([*lines, lines[-1]])).line == len(lines) + 1
    assert (await refusal([lines[0], lines[2], lines[1], *lines[3:]])).line == 2


async def test_a_later_version_is_refused_by_its_number() -> None:
    lines = await small_file()
    head = lines[0].replace(b'"version":1', b'"version":2')
    error = await refusal([head, *lines[1:]])
    assert error.line == 1
    assert "version 2 of the export format, and this release of flat reads 1" in str(error)
    assert error.exit_code == 3


async def test_something_else_is_refused_at_once() -> None:
    assert "not written by flat runs export" in str(await refusal([b"SQLite format 3\0" + bytes(100)]))
    assert "not written by flat runs export" in str(await refusal([b'{"hello": 1}\n']))


async def test_ids_that_exist_are_refused_skipped_or_replaced(store: CheckpointStore) -> None:
    source = MemoryStore()
    await family(source)
    file = await exported(source)
    assert await store.create(birth("middle", body=b"of here"))
    with pytest.raises(
        TakenIds, match=r"middle is in the store already.*--skip-existing.*--replace"
    ) as caught:
        await import_runs(store, file, now=clock)
    assert caught.value.exit_code == 8
    assert [e.execution_id async for e in store.find()] == ["middle"]
    told = await import_runs(store, file, existing="skip", now=clock)
    assert (told.skipped, told.executions) == (["middle"], 3)
    assert await store.bodies("middle") == [(0, True, b"of here")]
    told = await import_runs(store, file, existing="replace", now=clock)
    assert sorted(told.replaced) == ["leaf", "middle", "other", "top"]
    assert await store.bodies("middle") == [(0, True, b"body 0")]
    assert (await dump(store))["leaf"] == (await dump(source))["leaf"]
    assert len(await store.signals("inbox")) == 1


async def test_what_is_being_driven_is_not_replaced(store: CheckpointStore) -> None:
    source = MemoryStore()
    await begin(source, "e")
    file = await exported(source)
    assert await store.begin(birth("e", body=b"of here"), this_process(), now=NOW, ttl=TTL)
    with pytest.raises(ExecutionBusy, match="nothing was imported"):
        await import_runs(store, file, existing="replace", now=clock)
    assert await store.bodies("e") == [(0, True, b"of here")]


async def test_what_somebody_drives_is_told() -> None:
    source, out = MemoryStore(), io.BytesIO()
    assert await source.begin(birth("e"), this_process(), now=NOW, ttl=TTL)
    told: Exported = await export_runs(source, ["e"], out, now=clock)
    assert told.driven == ["e"]
    with pytest.raises(ExecutionNotFound):
        await families(source, ["nobody"])


async def test_what_is_missing_is_told_on_both_sides(store: CheckpointStore) -> None:
    source, out = MemoryStore(), io.BytesIO()
    lease = await begin(source, "e")
    await source.commit(step(lease, 1, b'{"c":{"$":["blob","gone"]}}'))
    told = await export_runs(source, ["e"], out, now=clock)
    assert told.missing == ["program digest of execution e", "blob gone of execution e"]
    assert (await import_runs(store, out, now=clock)).missing == told.missing


async def test_a_damaged_execution_does_not_keep_the_others(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    source, out = SQLiteStore(tmp_path / "a.db"), io.BytesIO()
    for id_ in ("good", "bad"):
        lease = await begin(source, id_)
        for seq in (1, 2):
            await source.commit(step(lease, seq))
    with closing(sqlite3.connect(source.path)) as connection, connection:
        connection.execute("DELETE FROM bodies WHERE id = (2 << 32 | 1)")
    told = await export_runs(source, await everything(source), out, now=clock)
    assert (told.executions, told.damaged) == (1, ["bad"])
    assert check_file(out).execution_ids == ["good"]
    await source.close()


# -- half an import ------------------------------------------------------------------------------------


class Dying(BaseException):
    """The process ends here."""


class Mortal:
    """A store that dies with its process at a commit, and never hears of anything again."""

    def __init__(self, store: CheckpointStore, commits: int) -> None:
        self.store, self.left = store, commits

    def __getattr__(self, name: str) -> Any:
        if self.left < 0:
            raise Dying
        return getattr(self.store, name)

    async def commit(self, commit: Commit) -> None:
        self.left -= 1
        if self.left < 0:
            raise Dying
        await self.store.commit(commit)


async def test_half_an_import_is_never_run_and_replaced_by_the_next(store: CheckpointStore) -> None:
    made = asking("x", "y")
    source = MemoryStore()
    async with Runtime(source, clock=VirtualClock()) as runtime:
        await runtime.start(made, execution_id="e")
    file = await exported(source)
    with pytest.raises(Dying):
        await import_runs(Mortal(store, 1), file, now=clock)
    half = await store.get("e")
    assert half is not None
    assert half.status == IMPORTING
    later = NOW + 1000  # the lease of the dead importer has ended
    async with Runtime(store) as runtime:
        with pytest.raises((IncompatibleSnapshot, ExecutionBusy)):
            await runtime.resume("e", made)
    assert not await everything(store)
    assert (await export_runs(store, ["e"], io.BytesIO(), now=clock)).executions == 0
    await store.release(await store.acquire("e", ALICE, now=later, ttl=TTL))
    told = await import_runs(store, file, now=lambda: later)
    assert (told.executions, told.replaced, told.skipped) == (1, [], [])
    assert (await dump(store))["e"] == (await dump(source))["e"]


async def test_an_import_that_fails_leaves_no_half(store: CheckpointStore) -> None:
    class Failing(Mortal):
        async def commit(self, commit: Commit) -> None:
            if (commit.lease.execution_id, commit.seq) == ("second", 2):
                raise BackendError("the disk is full")
            await self.store.commit(commit)

    source = MemoryStore()
    for id_ in ("first", "second"):
        lease = await begin(source, id_)
        for seq in (1, 2):
            await source.commit(step(lease, seq))
    with pytest.raises(BackendError, match="disk is full"):
        await import_runs(Failing(store, 4), await exported(source), now=clock)
    # What was whole by then stays; of the others nothing.
    assert {(e.execution_id, e.seq, e.status) async for e in store.find()} <= {("first", 2, "running")}
    told = await import_runs(store, await exported(source), existing="skip", now=clock)
    assert told.executions + len(told.skipped) == 2
    assert (await dump(store))["second"] == (await dump(source))["second"]


async def test_memory_is_bounded_by_the_largest_execution(tmp_path: Path) -> None:
    import tracemalloc

    source, target = SQLiteStore(tmp_path / "a.db"), SQLiteStore(tmp_path / "b.db")
    for number in range(100):
        lease = await begin(source, f"e{number}")
        await source.commit(step(lease, 1, bytes([65 + number % 26]) * 200_000))
    file = (tmp_path / "runs.jsonl").open("w+b")
    tracemalloc.start()
    await export_runs(source, await everything(source), file, whole=True, now=clock)
    await import_runs(target, file, now=clock)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000 < 100 * 200_000 < file.tell()
    assert len(check_file(file).execution_ids) == 100
    file.close()
    await source.close()
    await target.close()


async def test_every_line_is_as_the_schema_says() -> None:
    import jsonschema

    path = Path(__file__).parents[2] / "schemas" / "export.json"
    validator = jsonschema.Draft202012Validator(orjson.loads(path.read_bytes()))
    source = MemoryStore()
    await generate(
        source,
        [
            (
                "e",
                {
                    "name": "n",
                    "kind": "yaml",
                    "program": "p1",
                    "status": "done",
                    "channels": (),
                    "wake_at": None,
                },
                [{"body": b"\xff", "base": False, "blob": b"x", "log": [b"a", b"\xfe"]}],
            )
        ],
        [("s", "c", b"1", False, 1.5), ("t", "c", b"2", True, 2.5)],
    )
    records = [orjson.loads(line) for line in (await exported(source)).getvalue().splitlines()]
    assert {record["record"] for record in records} == {
        "head", "program", "blob", "execution", "commit", "signal", "dead", "end",
    }  # fmt: skip
    for record in records:
        validator.validate(record)
        assert not validator.is_valid({**record, "more": 1})


async def test_the_log_of_a_tree_is_told_apart_by_commits(store: CheckpointStore) -> None:
    node: Node[Any] = Node("Talk.", {"type": "object"}, name="talk", initial_state={})
    answers = {"talk": ["One.", "Two, " + "x" * 2 * BLOB_SIZE, "Three.", "Four."]}
    charter = Charter("talking", executor=ScriptedExecutor(answers), nodes=[node])
    talk = create_machine(charter, Instance(node, {}, id="r"))
    for said in ("a", "b", "c"):
        assert [step async for step in run_machine(talk, said)][-1].done
    source = talk.runtime.opened()
    execution = await source.get(talk.execution_id)
    assert execution is not None
    bodies = await source.bodies(talk.execution_id)
    stored = await source.load(talk.execution_id)
    assert stored is not None
    assert len(stored.log) >= 6
    told = _told_lengths(bodies)
    assert told == await _looked_up_lengths(source, execution, len(stored.log))
    file = await exported(source)
    assert b'"log":[' in file.getvalue()
    await import_runs(store, file, now=clock)
    async with Runtime(store) as runtime:
        assert await runtime.messages(talk.execution_id) == await talk.runtime.messages(talk.execution_id)
    assert (await dump(store))[talk.execution_id] == (await dump(source))[talk.execution_id]
