"""`flat runs show`: one execution, as it is, as it was, what changed, and what it cost."""

from __future__ import annotations

import json as json_format
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from flat.backends.protocols import Execution
from flat.cli.costs import cost_data, cost_lines, family_costs
from flat.cli.ending import DONE, UsageError, say
from flat.cli.family import Member, child_of, family_data, family_lines, family_of
from flat.cli.field import FieldNotFound, say_field
from flat.cli.outcomes import failure_data
from flat.cli.plain import spent_data
from flat.cli.runs import execution_data, shown_status, when
from flat.cli.stores import DEFAULT, full_id, need_store, resume_hint, store_url
from flat.cli.tables import cut, room
from flat.cli.text import count, money, one_line, seconds, short_id
from flat.cli.tree_show import place_words, tree_lines
from flat.core.snapshot import Snapshot
from flat.runtime import Runtime
from flat.runtime.history import ABSENT, Change, Diff, Moment, Origin, Place, diff, forked_from, moment

LONG = 2000
_STEP = re.compile(r"[0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to show; one of them at most."""

    steps: bool = False
    at: str | None = None
    diff: tuple[str, str] | None = None
    cost: bool = False
    get: str | None = None

    def check(self, json: bool) -> None:
        one_of = (self.steps, self.at is not None, self.diff is not None, self.cost, self.get is not None)
        if sum(one_of) > 1:
            raise UsageError("--steps, --at, --diff, --cost and --get exclude each other")
        if json and self.get is not None:
            raise UsageError("--get and --json exclude each other")


def place_of(text: str) -> Place:
    """What `--at` names: a step by its number, a commit as `seq:N`."""
    if _STEP.fullmatch(text):
        return f"step:{text}"
    if text.startswith(("seq:", "step:")) and _STEP.fullmatch(text.partition(":")[2]):
        return text
    raise UsageError(
        f"{text!r} names no step; write its number, as `flat runs show ID --steps` shows it, or seq:N for a commit"
    )


def show_run(id_: str, asked: Asked, *, store: str | None, json: bool) -> int:
    """Show one execution."""
    asked.check(json)
    for text in (*(asked.diff or ()), *([asked.at] if asked.at is not None else [])):
        place_of(text)
    url = store_url(store)
    need_store(url, id_)
    if asked.get is not None:
        say_field(anyio.run(_output, url, id_), asked.get)
        return DONE
    data, lines = anyio.run(_look, url, id_, asked, store)
    if json:
        say(json_format.dumps(data(), indent=2, default=str))
    else:
        for line in lines():
            say(line)
    return DONE


View = tuple[Callable[[], Any], Callable[[], Sequence[str]]]
"""What was read, as data and as lines; only one of the two is made."""


async def _look(url: str, given: str, asked: Asked, store: str | None) -> View:
    async with Runtime(url) as runtime:
        execution_id = await full_id(runtime, given)
        execution = await runtime.opened().get(execution_id)
        assert execution is not None
        if asked.at is not None:
            then = await moment(runtime.opened(), execution_id, place_of(asked.at))
            return lambda: _moment_data(execution, then), lambda: _moment_lines(execution, then)
        if asked.diff is not None:
            found = await _difference(runtime, execution_id, *asked.diff)
            return lambda: _diff_data(found), lambda: _diff_lines(execution, found)
        if asked.cost:
            costs = await family_costs(runtime, execution)
            return lambda: cost_data(costs), lambda: cost_lines(costs)
        page = await _page(runtime, execution, asked.steps, store)
        return page.data, page.lines


async def _output(url: str, given: str) -> Any:
    async with Runtime(url) as runtime:
        execution_id = await full_id(runtime, given)
        snapshot = await runtime.inspect(execution_id)
        if snapshot.status != "done":
            raise FieldNotFound(f"execution {short_id(execution_id)} is {snapshot.status} and has no output")
        return snapshot.output


async def _difference(runtime: Runtime, execution_id: str, a: str, b: str) -> Diff:
    store = runtime.opened()
    before = await moment(store, execution_id, place_of(a))
    return diff(before, await moment(store, execution_id, place_of(b)))


# -- as it is ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    execution: Execution
    status: str
    snapshot: Snapshot
    history: Sequence[tuple[int, Snapshot]]
    steps: bool
    origin: Origin | None
    family: Member | None
    where: str | None

    def data(self) -> dict[str, Any]:
        data = {**execution_data(self.execution, self.status), **_snapshot_data(self.snapshot)}
        data["forked_from"] = None if self.origin is None else _origin_data(self.origin)
        data["family"] = None if self.family is None else family_data(self.family)
        data["next"] = [command for _, command in self.next()]
        if self.steps:
            data["checkpoints"] = [{"seq": seq, **_snapshot_data(one)} for seq, one in self.history]
        return data

    def lines(self) -> list[str]:
        e, width = self.execution, room()
        facts = [
            ("execution", e.execution_id),
            ("machine", e.name),
            ("status", self.status),
            ("state", self._place()),
            ("started", when(e.created_at)),
            ("took", seconds(e.updated_at - e.created_at)),
            ("stored", count(e.seq + 1, "checkpoint")),
        ]
        if self.origin is not None:
            facts.append(("forked", _origin_words(self.origin)))
        facts += _facts(self.snapshot, e.channels, finished=e.status == "done") + self.next()
        lines = [_fact(name, value) for name, value in facts]
        if e.kind == "tree" and (tree := tree_lines(self.snapshot.root.context, width)):
            lines += ["", "tree:", *tree]
        if self.family is not None:
            lines += ["", "family:", *family_lines(self.family, e.execution_id, width)]
        if self.steps:
            lines.append("")
            before: Mapping[str, Any] = {}
            for seq, one in self.history:
                lines.append(cut(_checkpoint_line(seq, one, before, self.history[0][1].started_at), width))
                before = one.root.context
        return lines

    def _place(self) -> str:
        if self.execution.kind == "tree":
            return place_words(self.snapshot.root.context)
        return f"{self.snapshot.root.node} (step {self.snapshot.steps})"

    def next(self) -> list[tuple[str, str]]:
        """What one can do about it, as commands."""
        name = self.execution.execution_id
        store = f" --store {shlex.quote(self.where)}" if self.where and self.where != DEFAULT else ""
        match self.status:
            case "interrupted":
                return [("continue", resume_hint(name, self.where))]
            case "limit":
                return [("continue", resume_hint(name, self.where, more="--more-steps 100"))]
            case "in_doubt":
                return [("decide", resume_hint(name, self.where, more="--retry-in-doubt"))]
            case "waiting":
                told = []
                for channel in self.execution.channels:
                    if (child := child_of(channel)) is not None:
                        told.append(("child", f"flat runs show {shlex.quote(short_id(child))}{store}"))
                    else:
                        told.append(("signal", f"flat signal {shlex.quote(channel)} JSON{store}"))
                return [*told, ("then", resume_hint(name, self.where))]
        return []


async def _page(runtime: Runtime, execution: Execution, steps: bool, where: str | None) -> _Page:
    execution_id = execution.execution_id
    return _Page(
        execution=execution,
        status=await shown_status(runtime, execution),
        snapshot=await runtime.inspect(execution_id),
        history=await runtime.snapshots(execution_id) if steps else (),
        steps=steps,
        origin=await forked_from(runtime.opened(), execution_id),
        family=await family_of(runtime, execution),
        where=where,
    )


def _fact(name: str, value: str) -> str:
    return f"{name + ':':<11}{one_line(value, LONG)}"


def _json(value: Any) -> str:
    return json_format.dumps(value, ensure_ascii=False, default=str)


def _origin_data(origin: Origin) -> dict[str, Any]:
    return {"execution_id": origin.execution_id, "step": origin.step, "seq": origin.seq}


def _origin_words(origin: Origin) -> str:
    return f"from {origin.execution_id} at step {origin.step} (commit {origin.seq})"


def _snapshot_data(snapshot: Snapshot) -> dict[str, Any]:
    root = snapshot.root
    return {
        "state": root.node, "op": root.op, "steps": snapshot.steps, "spent": spent_data(snapshot.spent),
        "pending": list(snapshot.pending), "context": root.context, "output": snapshot.output,
        "reason": snapshot.reason, "failure": failure_data(snapshot.failure, root.node),
    }  # fmt: skip


def _facts(snapshot: Snapshot, channels: Sequence[str], *, finished: bool) -> list[tuple[str, str]]:
    """What a snapshot holds, in lines with a name each."""
    facts, failure = [], snapshot.failure
    if snapshot.spent.calls:
        spent, tokens = snapshot.spent, snapshot.spent.input_tokens + snapshot.spent.output_tokens
        price = money(spent.cost, spent.priced)
        facts.append(("spent", f"{count(spent.calls, 'model call')}, {count(tokens, 'token')}, {price}"))
    if snapshot.reason:
        facts.append(("reason", snapshot.reason))
    if failure is not None:
        facts.append(("failure", f"{failure.type}: {failure.detail or failure.message}"))
    if channels:
        facts.append(("waits on", ", ".join(channels)))
    if snapshot.pending:
        facts.append(("pending", ", ".join(snapshot.pending)))
    facts.append(("context", _json(snapshot.root.context)))
    if finished:
        facts.append(("output", _json(snapshot.output)))
    return facts


def _checkpoint_line(seq: int, one: Snapshot, before: Mapping[str, Any], began: float) -> str:
    root = one.root
    changed = {
        k: v for k, v in root.context.items() if k not in before or (before[k] is not v and before[k] != v)
    }
    what = one_line(_json(changed), 100) if changed else ""
    where = one_line(_cursor(one), 40)
    status = "" if one.status == "running" else f"{one.status}  "
    return (
        f"{seq:>5}  {seconds(one.at - began):>9}  step {one.steps:<4}  {where:<24}  {status}{what}".rstrip()
    )


def _cursor(snapshot: Snapshot) -> str:
    root = snapshot.root
    return f"{root.node}/{root.op}" if root.op else root.node


# -- as it was ---------------------------------------------------------------------------------------


def moment_words(then: Moment) -> str:
    """Which moment it is, for people: `step 3 (state b, commit 4)`."""
    step = f"step {then.step}" if then.snapshot.root.op else f"the beginning of step {then.step + 1}"
    return f"{step} (state {one_line(then.node, 40)}, commit {then.seq})"


def _moment_data(execution: Execution, then: Moment) -> dict[str, Any]:
    return {
        "execution_id": execution.execution_id, "machine": execution.name, "seq": then.seq,
        "status": then.snapshot.status, "at": then.snapshot.at, **_snapshot_data(then.snapshot),
    }  # fmt: skip


def _moment_lines(execution: Execution, then: Moment) -> list[str]:
    snapshot = then.snapshot
    facts = [
        ("execution", execution.execution_id),
        ("shown", f"{moment_words(then)} of commits 0 to {execution.seq}"),
        ("status", snapshot.status),
        ("stands at", _cursor(snapshot)),
        ("time", f"{when(snapshot.at)}, {seconds(snapshot.at - snapshot.started_at)} after the start"),
        *_facts(snapshot, (), finished=snapshot.status == "done"),
    ]
    return [_fact(name, value) for name, value in facts]


# -- what changed ------------------------------------------------------------------------------------


def _diff_data(found: Diff) -> dict[str, Any]:
    return {
        "from": {"seq": found.a.seq, "step": found.a.step, "state": found.a.node},
        "to": {"seq": found.b.seq, "step": found.b.step, "state": found.b.node},
        "status": None if found.status is None else _change_data(found.status),
        "cursors": [_change_data(c) for c in found.cursors],
        "context": [_change_data(c) for c in found.context],
    }


def _change_data(change: Change) -> dict[str, Any]:
    data: dict[str, Any] = {"path": list(change.path), "kind": change.kind}
    if change.before is not ABSENT:
        data["before"] = change.before
    if change.after is not ABSENT:
        data["after"] = change.after
    return data


def _diff_lines(execution: Execution, found: Diff) -> list[str]:
    name = one_line(short_id(execution.execution_id))
    lines = [f"{name} from {moment_words(found.a)} to {moment_words(found.b)}"]
    if not found:
        return [*lines, "nothing is different"]
    if found.status is not None:
        lines.append(f"  status   {found.status.before} → {found.status.after}")
    lines += [f"  cursor   {_side(c.before)} → {_side(c.after)}" for c in found.cursors]
    for change in found.context:
        sign = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
        sides = [_side(v) for v in (change.before, change.after) if v is not ABSENT]
        lines.append(f"{sign} {_path(change.path)}: {' → '.join(sides)}")
    width = room()
    return [cut(one_line(line, LONG) if line[:1] in "+-~" else line, width) for line in lines]


def _side(value: Any) -> str:
    if value is ABSENT:
        return "nothing"
    return one_line(value if isinstance(value, str) and "/" in value else _json(value), 300)


def _path(path: Sequence[str | int]) -> str:
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return one_line(f"context{shown}", 200)
