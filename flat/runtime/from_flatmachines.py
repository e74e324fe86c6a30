"""Executions of flatmachines made into an export file, which `transfer.import_runs` stores like any other.

What is over can be read afterwards, moment by moment; what is not can be resumed. Where an execution goes on is what
flatmachines itself does (the state of the newest checkpoint is entered again), with two exceptions: one that
had not entered its first state begins there, and not in a state called `start`; and one that had left a
state chooses the next one, and does not run the state a second time.

What cannot be carried over is told (`Carried.notes`, `Carried.left`), and nothing of it is guessed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, Any

import orjson
import yaml

from flat.core.codec import Codec
from flat.core.events import Spent
from flat.core.ops import Branch
from flat.core.program import Program
from flat.core.snapshot import ROOT, Instance, Snapshot, Status
from flat.errors import DefinitionError, FlatError, NotStorable, SpecError
from flat.runtime.flatmachines_files import Old, OldSignal, Source
from flat.runtime.loading import load
from flat.runtime.machine import Machine
from flat.runtime.transfer_file import FORMAT, VERSION, Writer, packed

_CODEC = Codec()


@dataclass(slots=True)
class Carried:
    """What became of each execution, by its id."""

    done: list[str] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    """Those that can be resumed at once."""
    signals: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)
    """An id and what was not carried over of that execution; of the whole place, if the id is empty."""
    left: list[tuple[str, str]] = field(default_factory=list)
    """An id and why that execution was not carried over."""


class Left(Exception):
    """An execution cannot be carried over; the text says why."""


def convert(
    source: Source,
    machines: Sequence[Machine],
    out: IO[bytes],
    *,
    compat: bool = False,
    now: Callable[[], float] = time.time,
) -> Carried:
    """Write everything that can be carried over into an export file. `machines` are looked up by their name."""
    return _Conversion(source, machines, Writer(out), compat, now).run()


class _Conversion:
    def __init__(
        self,
        source: Source,
        machines: Sequence[Machine],
        writer: Writer,
        compat: bool,
        now: Callable[[], float],
    ) -> None:
        self.source, self.writer, self.compat, self.now = source, writer, compat, now
        self.told = Carried()
        self._given = {machine.name: machine for machine in machines}
        self._machines: dict[str, Machine] = {}
        self._programs: set[str] = set()
        self._blobs: set[str] = set()

    def run(self) -> Carried:
        self.writer.write("head", {"format": FORMAT, "version": VERSION, "made_at": self.now()})
        known = list(self.source.executions())
        launched = self._launched(known)
        for old in known:
            try:
                self._execution(old, launched)
            except Left as left:
                self.told.left.append((old.execution_id, str(left)))
        for signal in self.source.signals():
            self._signal(signal)
        if jobs := self.source.jobs():
            self.told.notes.append(("", f"{jobs} jobs wait in its work pools; put them into a pool of flat"))
        carried = len(self.told.done) + len(self.told.parked) + len(self.told.running)
        self.writer.write("end", {"executions": carried, "signals": self.told.signals, "dead": 0})
        return self.told

    def _launched(self, known: Sequence[Old]) -> set[str]:
        """Executions that were started without anybody waiting for them."""
        found: set[str] = set()
        for old in known:
            try:
                latest = self._snapshot(old.latest) if old.latest else {}
            except Left:
                continue
            for intent in latest.get("pending_launches") or ():
                if isinstance(intent, dict) and intent.get("launched"):
                    found.add(str(intent.get("execution_id")))
        return found

    # -- one execution -----------------------------------------------------------------------------

    def _execution(self, old: Old, launched: set[str]) -> None:
        if old.latest is None:
            raise Left("it has no newest checkpoint")
        lease = self.source.lease(old.execution_id)
        if lease is not None and lease.until > self.now():
            raise Left(
                f"it is being driven by {lease.owner} until {_when(lease.until)}; wait until it is over"
            )
        newest = self._snapshot(old.latest)
        machine = self._machine(newest)
        made = _Making(old.execution_id, machine.program, old.execution_id in launched)
        try:
            parts, last = made.bodies(self._history(old), newest)
        except NotStorable as error:
            raise Left(str(error)) from error
        self.told.notes += [(old.execution_id, note) for note in made.notes]
        self._write(machine, newest, parts, last)
        kind = {"waiting": self.told.parked, "running": self.told.running}
        kind.get(last.status, self.told.done).append(old.execution_id)

    def _history(self, old: Old) -> Iterator[dict[str, Any]]:
        """The snapshots before the newest, one at a time: each holds all of the context."""
        keys = list(old.keys)
        for key in keys[: keys.index(old.latest)] if old.latest in keys else keys:
            try:
                yield self._snapshot(key)
            except Left as damaged:
                self.told.notes.append((old.execution_id, f"of its history: {damaged}"))

    def _snapshot(self, key: str) -> dict[str, Any]:
        raw = self.source.read(key)
        if raw is None:
            raise Left(f"its checkpoint {key} is missing")
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Left(f"its checkpoint {key} cannot be read: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("context"), dict):
            raise Left(f"its checkpoint {key} is no snapshot")
        return data

    def _write(
        self,
        machine: Machine,
        newest: Mapping[str, Any],
        parts: Sequence[tuple[bytes, Mapping[str, bytes]]],
        last: Snapshot,
    ) -> None:
        write, digest = self.writer.write, machine.program.digest
        if digest not in self._programs:
            self._programs.add(digest)
            write("program", {"digest": digest, "body": packed(machine.config_text())})
        channel = newest.get("waiting_channel")
        write("execution", {
            "execution_id": last.execution_id, "name": machine.name, "kind": machine.program.kind,
            "program": digest, "status": last.status, "created_at": last.started_at, "updated_at": last.at,
            "parent": last.parent, "wake_at": None,
            "channels": [str(channel)] if last.status == "waiting" else [], "commits": len(parts),
        })  # fmt: skip
        for seq, (body, blobs) in enumerate(parts):
            for name, blob in blobs.items():
                if name not in self._blobs:
                    self._blobs.add(name)
                    write("blob", {"digest": name, "body": packed(blob)})
            write("commit", {"seq": seq, "base": seq == 0, "body": packed(body)})

    # -- machines ----------------------------------------------------------------------------------

    def _machine(self, newest: Mapping[str, Any]) -> Machine:
        name, digest = str(newest.get("machine_name")), newest.get("config_hash")
        if name in self._given:
            return self._given[name]
        text = self.source.config(str(digest)) if digest else None
        if text is not None:
            return self._stored(str(digest), text)
        if newest.get("event") == "machine_end":
            return self._unknown(name)
        raise Left(f'the config of its machine "{name}" is not kept there; name its file: --machine FILE')

    def _stored(self, digest: str, text: str) -> Machine:
        if digest not in self._machines:
            try:
                config = yaml.safe_load(text)
                self._machines[digest] = self._loaded(config)
            except (yaml.YAMLError, FlatError, AttributeError, TypeError) as error:
                first = str(error).partition("\n")[0]
                raise Left(
                    f"the config that it was started with cannot be loaded ({first}); name its file: --machine FILE"
                ) from error
        return self._machines[digest]

    def _loaded(self, config: Any) -> Machine:
        if not isinstance(config, dict):
            raise DefinitionError("it is no mapping")
        try:
            return load(config=config, compat=self.compat)
        except SpecError:
            # flatmachines ran it, whatever it thinks of it.
            return load(config=config, compat=True)

    def _unknown(self, name: str) -> Machine:
        """Stands for a machine that is over, and of which nothing but the name is known."""
        if name not in self._machines:
            states = {
                "start": {"type": "initial", "transitions": [{"to": "end"}]},
                "end": {"type": "final", "output": {}},
            }
            data = {"name": name, "context": {}, "states": states}
            self._machines[name] = load(config={"spec": "flatmachine", "spec_version": "2.5.0", "data": data})
        return self._machines[name]

    # -- signals -----------------------------------------------------------------------------------

    def _signal(self, signal: OldSignal) -> None:
        try:
            body = orjson.dumps(_CODEC.plain(orjson.loads(signal.data), "data", None))
        except (orjson.JSONDecodeError, NotStorable) as error:
            self.told.left.append((signal.id, f'the signal on "{signal.channel}" cannot be read: {error}'))
            return
        self.writer.write("signal", {
            "signal_id": signal.id, "channel": signal.channel, "to": None,
            "created_at": _seconds(signal.created_at, self.now()), "body": packed(body),
        })  # fmt: skip
        self.told.signals += 1


class _Making:
    """Makes the snapshots of one execution, and what is stored of them."""

    def __init__(self, execution_id: str, program: Program, launched: bool) -> None:
        self.execution_id, self.program, self.launched = execution_id, program, launched
        self.notes: list[str] = []

    def bodies(
        self, before: Iterable[Mapping[str, Any]], newest: Mapping[str, Any]
    ) -> tuple[list[tuple[bytes, Mapping[str, bytes]]], Snapshot]:
        """A first body and changes, as a driver would have stored them; and the last snapshot."""
        parts: list[tuple[bytes, Mapping[str, bytes]]] = []
        last: Snapshot | None = None
        for data in before:
            snapshot = self._looked_at(data, last)
            parts.append((_CODEC.first(snapshot), {}) if last is None else _CODEC.delta(last, snapshot))
            last = snapshot
        snapshot = self._going_on(newest, self._looked_at(newest, last))
        parts.append((_CODEC.first(snapshot), {}) if last is None else _CODEC.delta(last, snapshot))
        return parts, snapshot

    def _looked_at(self, data: Mapping[str, Any], before: Snapshot | None) -> Snapshot:
        """A checkpoint as a moment to look at: running, in its state."""
        step = int(data.get("step") or 0)
        at = _seconds(data.get("created_at"), 0.0 if before is None else before.at)
        context: Mapping[str, Any] = {
            key: value for key, value in data["context"].items() if key != "machine"
        }
        node = str(data.get("current_state"))
        if data.get("event") == "machine_start":
            node = self.program.initial
        elif data.get("event") == "machine_end" and before is not None:
            node = before.root.node
        if before is not None:
            context = _sharing(before.root.context, context)
        calls, cost = int(data.get("total_api_calls") or 0), float(data.get("total_cost") or 0.0)
        parent = data.get("parent_execution_id")
        return Snapshot(
            execution_id=self.execution_id,
            status="running",
            steps=step,
            instances={ROOT: Instance(ROOT, node, "", step, context)},
            spent=before.spent
            if before is not None and (before.spent.calls, before.spent.cost) == (calls, cost)
            else Spent(calls=calls, cost=cost),
            max_steps=self.program.limits.max_steps,
            max_agent_calls=self.program.limits.max_agent_calls,
            started_at=at if before is None else before.started_at,
            at=at if before is None else max(at, before.at),
            parent=None if parent is None else str(parent),
            depth=int(data.get("depth") or 0),
            launched=self.launched,
        )

    def _going_on(self, data: Mapping[str, Any], snapshot: Snapshot) -> Snapshot:
        """The newest checkpoint as what it is: over, parked, or with a place to go on at."""
        event, state = data.get("event"), snapshot.root.node
        status: Status = "running"
        if event == "machine_end":
            return replace(snapshot, status="done", output=data.get("output"))
        if event == "machine_start":
            return replace(snapshot, instances={ROOT: replace(snapshot.root, node=self.program.entry)})
        node = self.program.nodes.get(state)
        if node is None:
            raise Left(f'it stands in state "{state}", which its machine does not have')
        if event == "state_exit" and node.final:
            self.notes.append("on_machine_end was not run; it had left its final state")
            return replace(snapshot, status="done", output=data.get("output"))
        for intent in data.get("pending_launches") or ():
            if isinstance(intent, dict) and not intent.get("launched"):
                self.notes.append(f'its launch of "{intent.get("machine")}" was not carried over')
        if event == "waiting":
            status = "waiting"
            if data.get("waiting_channel") is None:
                raise Left("it waits on no channel")
        if event == "tool_call":
            turns = (data.get("tool_loop_state") or {}).get("turns", 0)
            self.notes.append(f'the tool loop of state "{state}" begins again; {turns} turns of it are lost')
        if event == "state_exit" and (branch := self._branch(state)) is not None:
            self.notes.append(f'goes on after state "{state}", whose on_state_exit is not run')
            root = replace(snapshot.root, op=branch.key)
            return replace(snapshot, instances={ROOT: root})
        return replace(snapshot, status=status)

    def _branch(self, state: str) -> Branch | None:
        """What chooses the next state; it needs nothing but the context for that."""
        return next((op for op in self.program.nodes[state].ops if isinstance(op, Branch)), None)


def _sharing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """The new context, made of the old one's objects where nothing changed: only changes are stored."""
    shared: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key, _MISSING)
        if before is not _MISSING and _same(before, value):
            shared[key] = before
        elif isinstance(before, list) and isinstance(value, list) and _same(before, value[: len(before)]):
            shared[key] = [*before, *value[len(before) :]]
        else:
            shared[key] = value
    return old if shared.keys() == old.keys() and all(shared[k] is old[k] for k in old) else shared


_MISSING = object()


def _same(a: Any, b: Any) -> bool:
    # By their JSON: 1, 1.0 and true are three things there.
    return bool(orjson.dumps(a) == orjson.dumps(b))


def _seconds(text: Any, otherwise: float) -> float:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return otherwise
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
