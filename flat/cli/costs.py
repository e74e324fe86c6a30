"""`flat runs show ID --cost`: what was used by which state and agent, and by the family together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flat.backends.protocols import Execution
from flat.cli.family import descendants
from flat.cli.plain import spent_data
from flat.cli.tables import room, table
from flat.cli.text import count, money, one_line, short_id
from flat.core.events import Spent
from flat.runtime import Runtime
from flat.runtime.costs import BEFORE, Share, own, shares, total
from flat.runtime.machine import program_of

MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one execution used, and each one below it."""

    execution: Execution
    shares: Sequence[Share]
    below: Sequence[tuple[Execution, Spent]]
    """Every execution that it, or one of those, started; with what each used itself."""

    @property
    def own(self) -> Spent:
        return own(self.shares)

    @property
    def family(self) -> Spent:
        return total([self.own, *(spent for _, spent in self.below)])


async def family_costs(runtime: Runtime, execution: Execution) -> Costs:
    """Read what an execution and those below it used."""
    mine = await _shares(runtime, execution)
    below = [m.execution for m in (await descendants(runtime, execution, MOST)).all()][1:]
    used = [(e, own(await _shares(runtime, e))) for e in below]
    return Costs(execution=execution, shares=mine, below=used)


async def _shares(runtime: Runtime, execution: Execution) -> list[Share]:
    text = await runtime.opened().get_config(execution.program)
    program = None if text is None else program_of(text)[0]
    return shares((s for _, s in await runtime.snapshots(execution.execution_id)), program)


def cost_data(costs: Costs) -> dict[str, Any]:
    """As plain data."""
    return {
        "execution_id": costs.execution.execution_id,
        "machine": costs.execution.name,
        "shares": [
            {"state": s.node, "agent": s.agent, "machine": s.machine, **spent_data(s.spent)}
            for s in costs.shares
        ],
        "own": spent_data(costs.own),
        "children": [
            {"execution_id": e.execution_id, "machine": e.name, "parent": e.parent, **spent_data(spent)}
            for e, spent in costs.below
        ],
        "family": spent_data(costs.family),
    }


def cost_lines(costs: Costs) -> list[str]:
    """As a table."""
    rows: list[tuple[str, ...]] = [("state", "by", "calls", "tokens in", "tokens out", "cost")]
    for share in costs.shares:
        if share.machine is None:
            rows.append((one_line(share.node, 40), one_line(share.agent or "", 40), *_numbers(share.spent)))
    rows.append(("this execution", "", *_numbers(costs.own)))
    for execution, spent in costs.below:
        rows.append(
            (
                f"  {one_line(short_id(execution.execution_id))}",
                one_line(execution.name, 40),
                *_numbers(spent),
            )
        )
    if costs.below:
        rows.append((f"with {count(len(costs.below), 'execution')} below", "", *_numbers(costs.family)))
    lines = table(rows, room(), spare=(3, 4, 1))
    if any(share.node == BEFORE for share in costs.shares):
        lines.append("what was used before the fork is its original's, and not in the sums")
    return lines


def _numbers(spent: Spent) -> tuple[str, str, str, str]:
    tokens = f"{spent.input_tokens:,}", f"{spent.output_tokens:,}"
    return f"{spent.calls:,}", *tokens, money(spent.cost, spent.priced)
