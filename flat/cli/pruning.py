"""`flat runs prune`: remove what is over and old, and what nothing refers to any more."""

from __future__ import annotations

import json as json_format
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from flat.cli.ending import DONE, UsageError, complain, say
from flat.cli.runs import when
from flat.cli.stores import is_missing, store_url
from flat.cli.tables import room, table
from flat.cli.text import count, one_line, short_id
from flat.errors import BackendError, did_you_mean
from flat.runtime import Runtime
from flat.runtime.prune import PRUNABLE, USUAL, Collected, Doomed, Plan, Pruned, Wanted, plan, prune

SHOWN = 10
SPARED_SECONDS = 120.0
"""Programs of executions younger than this stay for the next time: somebody may count on them to be stored."""
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|h|d|w)", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for."""

    older_than: str | None = None
    keep: int | None = None
    statuses: Sequence[str] = ()
    dry_run: bool = False
    yes: bool = False
    leftovers: bool = False
    """No execution that is whole: only what nothing refers to, and half imports."""


def prune_runs(order: Order, *, store: str | None, json: bool) -> int:
    """Show what would go, and let it go."""
    age = _check(order)
    url = store_url(store)
    if is_missing(url):
        raise BackendError(f"there is no store at {url}; name it with --store")
    return anyio.run(_prune, url, order, age, json)


def _check(order: Order) -> float | None:
    """Refuse what cannot be meant; the age in seconds."""
    if order.leftovers:
        if order.older_than or order.keep is not None or order.statuses or order.dry_run:
            raise UsageError("--leftovers removes what nothing refers to, whatever its age: give it alone")
        return None
    if order.older_than is None and order.keep is None and not order.statuses:
        raise UsageError(
            "say what to remove: --older-than 30d, --keep N, --status done,failed, or --leftovers"
        )
    for status in order.statuses:
        if status in ("running", "waiting", "interrupted"):
            raise UsageError(
                f"what is {status} is never pruned; end it first: flat cancel ID, and then prune cancelled ones"
            )
        if status not in PRUNABLE:
            raise UsageError(f'there is no status "{status}"; {did_you_mean(status, PRUNABLE)}')
    age = None if order.older_than is None else age_of(order.older_than)
    if not (order.yes or order.dry_run or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise UsageError("nobody can be asked here: say --yes, or --dry-run to see what would go")
    return age


def age_of(text: str) -> float:
    """Seconds in `90s`, `15m`, `36h`, `30d` or `4w`."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f'"{text}" is no age; write a number and s, m, h, d or w: 30d')
    return float(found[1]) * _UNITS[found[2]]


async def _prune(url: str, order: Order, age: float | None, json: bool) -> int:
    async with Runtime(url) as runtime:
        store, now = runtime.opened(), runtime.clock.now()
        if order.leftovers:
            found = await plan(store, Wanted(statuses=()), now=now)
            _tell(await prune(store, found, now=now), Plan(halves=found.halves), json)
            return DONE
        wanted = Wanted(
            statuses=order.statuses or USUAL, before=None if age is None else now - age, keep=order.keep or 0
        )
        found = await plan(store, wanted, now=now)
        if order.dry_run:
            _show(found, order, url, json)
            return DONE
        if not order.yes:
            _show(found, order, url, False)
            if not found.executions or not _agreed():
                return DONE
        told = await prune(store, found, now=now, spare_since=now - SPARED_SECONDS)
        _tell(told, found, json)
        return DONE


def _agreed() -> bool:
    import typer

    return typer.confirm("remove them?", default=False)


def _show(found: Plan, order: Order, url: str, json: bool) -> None:
    if json:
        say(json_format.dumps({"dry_run": True, **_plan_data(found), "kept": _kept_data(found)}, indent=2))
        return
    if not found.executions:
        say(f"nothing to remove in {url}{_kept_words(found)}")
        return
    statuses = ", ".join(f"{number:,} {status}" for status, number in sorted(found.statuses().items()))
    families = "1 family" if len(found.families) == 1 else f"{len(found.families):,} families"
    say(f"would remove {count(found.executions, 'execution')} in {families} ({statuses}){_kept_words(found)}")
    shown = found.families[:SHOWN]
    rows = [
        (one_line(short_id(f.top)), one_line(f.name, 40), f.status, when(f.updated_at), f"{len(f.members):,}")
        for f in shown
    ]
    for line in table([("id", "machine", "status", "last change", "executions"), *rows], room()):
        say(line)
    if len(found.families) > len(shown):
        say(f"and {len(found.families) - len(shown):,} older ones")
    if found.halves:
        say(f"and {count(len(found.halves), 'execution')} that an import has left by half")
    if order.dry_run:
        say("then blobs and programs that nothing refers to any more")


def _kept_words(found: Plan) -> str:
    parts = []
    if found.living:
        parts.append(f"{found.living:,} that run or wait")
    if found.others:
        parts.append(f"{found.others:,} not asked for")
    return f"; kept: {', '.join(parts)}" if parts else ""


def _plan_data(found: Plan) -> dict[str, Any]:
    return {
        "executions": found.executions, "families": [_family_data(family) for family in found.families],
        "halves": found.halves,
    }  # fmt: skip


def _kept_data(found: Plan) -> dict[str, int]:
    return {"living": found.living, "others": found.others}


def _family_data(family: Doomed) -> dict[str, Any]:
    return {
        "execution_id": family.top, "machine": family.name, "status": family.status, "updated_at": family.updated_at,
        "executions": len(family.members),
    }  # fmt: skip


def _tell(told: Pruned, found: Plan, json: bool) -> None:
    if json:
        say(json_format.dumps({"dry_run": False, **asdict(told), "kept": _kept_data(found)}, indent=2))
        return
    signals = f" and {count(told.signals, 'signal')} for them" if told.signals else ""
    if found.executions or told.executions:
        say(f"removed {count(told.executions, 'execution')}{signals}{_kept_words(found)}")
    for id_ in told.skipped[:SHOWN]:
        complain(f"{short_id(id_)} stays: somebody took it up meanwhile")
    if told.collected is not None:
        say(_collected_words(told.collected))


def _collected_words(collected: Collected) -> str:
    if collected.refused:
        return f"blobs and programs stay: {collected.refused}"
    return (
        f"removed {count(collected.blobs, 'blob')} and {count(collected.programs, 'program')} "
        "that nothing refers to"
    )
