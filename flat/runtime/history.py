"""Looking back, and going on from there: any earlier moment of an execution, what changed, and forks.

A moment is named by the number of a commit, which is what a store counts, or by the number of a step, which is what
people see (`"step:3"`): the visit of a node with this number, as it was when the node was entered. Work that asks
for no effect makes no commit of its own, so that some steps are only passed on the way to the next one.

A fork is a new execution, with an id of its own, that holds what another one held at a moment. It is stored as a
single base, and names the moment in it (`forked_from`); it has no parent, because nobody waits for it. What was
pending in the original never began in the fork, so it is asked for anew, under ids that begin with the fork's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import orjson

from flat.backends.protocols import Birth, CheckpointStore, Commit, Execution, Head, Owner, Stored
from flat.bindings import standard_types
from flat.core.advance import advance
from flat.core.codec import Codec
from flat.core.effects import AwaitSignal
from flat.core.events import Resumed
from flat.core.fold import Fold
from flat.core.program import Program
from flat.core.snapshot import Instance, Snapshot
from flat.core.turn import ERROR_HOOK, has_place
from flat.drivers.draft import settle
from flat.drivers.keeper import collect_blobs, head_of
from flat.errors import (
    BackendError,
    DefinitionError,
    ExecutionBusy,
    ExecutionNotFound,
    IncompatibleSnapshot,
)
from flat.runtime.given import taken

Place: TypeAlias = int | str
"""A commit number, or text: `"seq:12"` a commit, `"step:3"` a step."""
LOOKING = Codec(standard_types(), opaque=True)
"""Reads what is stored without the types of the machine it belongs to."""
_PLACE = re.compile(r"(seq|step):([0-9]{1,18})", re.ASCII)


class NoSuchMoment(BackendError):
    """The execution has no such step or commit."""

    exit_code = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """An execution as it was at one commit."""

    seq: int
    snapshot: Snapshot

    @property
    def step(self) -> int:
        return self.snapshot.steps

    @property
    def node(self) -> str:
        return self.snapshot.root.node


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The moment that a fork was made of."""

    execution_id: str
    seq: int
    step: int


# -- moments ---------------------------------------------------------------------------------------


async def moment(
    store: CheckpointStore, execution_id: str, at: Place | None = None, codec: Codec = LOOKING
) -> Moment:
    """The execution at a moment; the newest one if none is named."""
    kind, number = _parsed(at)
    fold, seq = Fold(), -1
    if kind == "step":
        seq = await _fold_to_step(store, execution_id, number, fold)
    else:
        stored = await store.load(execution_id, at=number if at is not None else None)
        if stored is None or (at is not None and stored.bodies and stored.bodies[-1][0] != number):
            raise await _no_commit(store, execution_id, number)
        seq = _fold_all(stored, fold)
    if seq < 0:
        raise IncompatibleSnapshot(f'execution "{execution_id}" has no stored snapshot')
    return Moment(seq=seq, snapshot=fold.snapshot(codec, await _blobs(store, fold)))


def _parsed(at: Place | None) -> tuple[str, int]:
    if at is None:
        return "seq", 0
    if isinstance(at, int) and not isinstance(at, bool):
        if at >= 0:
            return "seq", at
    elif isinstance(at, str) and (found := _PLACE.fullmatch(at)):
        return found[1], int(found[2])
    raise DefinitionError(f'{at!r} names no moment; give a commit number, "seq:N", or "step:N"')


async def _fold_to_step(store: CheckpointStore, execution_id: str, step: int, fold: Fold) -> int:
    """Fold up to the commit in which a step begins; its number."""
    before, about, seq = -1, -1, -1
    for seq, base, body in await store.bodies(execution_id):
        fold.add(body, base=base)
        if fold.visits(step):
            return seq
        if fold.data["steps"] > step:
            break
        before = seq
        if fold.begins(step):
            about = seq
    if seq < 0:
        raise ExecutionNotFound(execution_id)
    if about < 0 or about != before:
        raise _passed(execution_id, step, before, fold)
    # Chosen and not entered: the very beginning, or the end of a run that reached a limit.
    stored = await store.load(execution_id, at=about)
    assert stored is not None
    return _fold_all(stored, fold)


def _fold_all(stored: Stored, fold: Fold) -> int:
    """Fold what was loaded; the number of its last commit, or -1 if there is none."""
    for position, (_, body) in enumerate(stored.bodies):
        fold.add(body, base=position == 0)
    return stored.bodies[-1][0] if stored.bodies else -1


async def _no_commit(store: CheckpointStore, execution_id: str, seq: int) -> BackendError:
    execution = await store.get(execution_id)
    if execution is None:
        return ExecutionNotFound(execution_id)
    return NoSuchMoment(
        f'execution "{execution_id}" has no commit {seq}; its commits are 0 to {execution.seq}'
    )


def _passed(execution_id: str, step: int, before: int, fold: Fold) -> NoSuchMoment:
    name, steps = f'execution "{execution_id}"', fold.data["steps"]
    if steps < step:
        return NoSuchMoment(f"{name} has not come to step {step}; its last one is {steps}")
    if before < 0:
        return NoSuchMoment(f"{name} is a fork and begins with step {steps}; step {step} is its original's")
    return NoSuchMoment(
        f"step {step} of {name} made no commit of its own: it was passed on the way to step {steps}; "
        f"name that one, or seq:{before} for the commit before"
    )


async def _blobs(store: CheckpointStore, fold: Fold) -> dict[str, bytes]:
    blobs: dict[str, bytes] = {}
    if fold.may_refer:
        await collect_blobs(store, orjson.dumps(fold.data), blobs)
    return blobs


# -- what changed -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One value that is not the same. What is not there at all is `ABSENT`."""

    path: tuple[str | int, ...]
    before: Any
    after: Any

    @property
    def kind(self) -> str:
        return "added" if self.before is ABSENT else "removed" if self.after is ABSENT else "changed"


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """How an execution at moment `b` differs from itself at moment `a`."""

    a: Moment
    b: Moment
    status: Change | None
    cursors: Sequence[Change]
    """Where instances stand, as `node/op`; by the instance's id."""
    context: Sequence[Change]
    """By path. With more than one instance, the path begins with the instance's id."""

    def __bool__(self) -> bool:
        return bool(self.status or self.cursors or self.context)


def diff(a: Moment, b: Moment) -> Diff:
    """What is different in `b`."""
    one, other = a.snapshot, b.snapshot
    status = Change((), one.status, other.status) if one.status != other.status else None
    cursors, context = list[Change](), list[Change]()
    lonely = one.instances.keys() | other.instances.keys() == {"0"}
    for key in sorted(one.instances.keys() | other.instances.keys()):
        old, new = one.instances.get(key), other.instances.get(key)
        if (was := _cursor(old)) != (now := _cursor(new)):
            cursors.append(Change((key,), was, now))
        path = () if lonely else (key,)
        _compare(path, old.context if old else ABSENT, new.context if new else ABSENT, context)
    return Diff(a=a, b=b, status=status, cursors=cursors, context=context)


def _cursor(instance: Instance | None) -> Any:
    if instance is None:
        return ABSENT
    return f"{instance.node}/{instance.op}" if instance.op else instance.node


def _compare(path: tuple[str | int, ...], old: Any, new: Any, found: list[Change]) -> None:
    if old is new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in (*old, *(k for k in new if k not in old)):
            _compare((*path, key), old.get(key, ABSENT), new.get(key, ABSENT), found)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            was = old[index] if index < len(old) else ABSENT
            _compare((*path, index), was, new[index] if index < len(new) else ABSENT, found)
    elif type(old) is not type(new) or old != new:
        found.append(Change(path, old, new))


# -- forks --------------------------------------------------------------------------------------------


async def fork(
    store: CheckpointStore, execution: Execution, program: Program, source: Moment, *,
    new_id: str, set: Mapping[str, Any], codec: Codec, owner: Owner, now: float, ttl: float,
) -> Snapshot:  # fmt: skip
    """Store a new execution that holds what another one held. Raises `ExecutionBusy` if the id is taken."""
    snapshot = _forked(source.snapshot, new_id, _checked(set, codec), now)
    for instance in snapshot.instances.values():
        if not has_place(program, instance.node, instance.op):
            raise IncompatibleSnapshot(
                f'the program that execution "{execution.execution_id}" has now has no '
                f'"{instance.node}/{instance.op}", where it stood then; fork it at another step'
            )
    head = Head(status=snapshot.status)
    if source.snapshot.status == "waiting":
        # What it waits on is not stored but asked for, and may depend on what was set.
        step = advance(program, snapshot, Resumed(now))
        waits = [effect for effect in step.effects if isinstance(effect, AwaitSignal)]
        if waits and len(waits) == len(step.effects):
            snapshot = replace(step.snapshot, status="waiting")
            head = head_of(snapshot, waits)
    body = await _body(store, snapshot, source, execution.execution_id, codec)
    columns = replace(
        execution, execution_id=new_id, status=head.status, seq=0, created_at=now, updated_at=now, parent=None,
        wake_at=head.wake_at, channels=head.channels, owner=None, token=0,
    )  # fmt: skip
    if not await _stored(
        store, execution.execution_id, Birth(execution=columns, body=body), source, owner, ttl
    ):
        raise _taken(new_id)
    return snapshot


def _checked(values: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """The values as a snapshot may hold them. Refused here, where the user is, and not at the first commit."""
    for key in values:
        if key == "machine":
            raise DefinitionError(
                '"machine" in the context is what the engine tells about the run; it cannot be set'
            )
    settled: dict[str, Any] = settle(dict(values))
    codec.plain(settled, "context", None)
    return settled


def _forked(old: Snapshot, new_id: str, values: Mapping[str, Any], now: float) -> Snapshot:
    """The snapshot of the fork: at rest where the original was, with nothing pending."""
    failed = old.status == "failed"
    shift = now - old.at
    instances = {}
    for key, i in old.instances.items():
        context = {**i.context, **values} if key == "0" and values else i.context
        # An op that failed for good is begun again; its memory says only that there is nothing left to try.
        local = None if failed and i.op != ERROR_HOOK else i.local
        deadline = None if i.deadline is None else i.deadline + shift
        instances[key] = replace(i, context=context, local=local, pending=(), deadline=deadline)
    keeps = old.status == "limit" or (old.status == "done" and not values)
    return replace(
        old,
        execution_id=new_id,
        status=old.status if keeps else "running",
        instances=instances,
        started_at=now,
        at=now,
        output=old.output if keeps else None,
        failure=None,
        reason=old.reason if keeps else "",
        parent=None,
        launched=False,
    )


async def _body(
    store: CheckpointStore, snapshot: Snapshot, source: Moment, execution_id: str, codec: Codec
) -> bytes:
    """The fork's only body. Texts that were kept apart are in it, so that it depends on nothing."""
    body = codec.first(snapshot)
    blobs: dict[str, bytes] = {}
    await collect_blobs(store, body, blobs)
    data = orjson.loads(body)
    if blobs:
        data = _inlined(data, blobs)
    data["forked_from"] = {"execution_id": execution_id, "seq": source.seq, "step": source.step}
    return orjson.dumps(data)


def _inlined(data: Any, blobs: Mapping[str, bytes]) -> Any:
    """References inside values of types that are not known here, replaced by the texts."""
    if isinstance(data, dict):
        tagged = data.get("$")
        if isinstance(tagged, list) and len(tagged) == 2 and tagged[0] == "blob":
            return Codec().plain(LOOKING.value(data, blobs), "blob", None)
        return {key: _inlined(value, blobs) for key, value in data.items()}
    return [_inlined(value, blobs) for value in data] if isinstance(data, list) else data


async def _stored(
    store: CheckpointStore, original: str, birth: Birth, source: Moment, owner: Owner, ttl: float
) -> bool:
    """Store the fork, with the rows of the original's log that belong to it. False if its id is taken."""
    if not source.snapshot.log_length:
        return await store.create(birth)
    stored = await store.load(original)
    rows = stored.log[: source.snapshot.log_length] if stored is not None else ()
    columns, now = birth.execution, birth.execution.created_at
    # Until the rows are there, it is one that nobody can resume.
    half = replace(columns, status="cancelled", wake_at=None, channels=())
    lease = await store.begin(Birth(execution=half, body=birth.body), owner, now=now, ttl=ttl)
    if lease is None:
        return False
    head = Head(status=columns.status, wake_at=columns.wake_at, channels=columns.channels)
    await store.commit(
        Commit(lease=lease, seq=1, at=now, body=birth.body, base=True, head=head, log=rows, release=True)
    )
    return True


def _taken(new_id: str) -> ExecutionBusy:
    return taken(new_id, "choose another id for the fork")


async def forked_from(store: CheckpointStore, execution_id: str) -> Origin | None:
    """The moment that an execution was forked from, or None if it was started."""
    stored = await store.load(execution_id, at=0)
    if stored is None or not stored.bodies:
        return None
    _, body = stored.bodies[0]
    if b'"forked_from":' not in body:
        return None
    told = orjson.loads(body).get("forked_from")
    return Origin(**told) if isinstance(told, dict) else None
