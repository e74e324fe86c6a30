"""Where calls, tokens and money went: by state and by agent, found in what is stored of an execution.

Each commit that answers an effect holds the new totals, so that the difference belongs to the effect that was
answered. What awaited children used is counted in their parent as well; such a share says so (`machine`), and a total
over a family leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flat.core.events import Spent
from flat.core.program import Program
from flat.core.snapshot import Snapshot

BEFORE = "(before the fork)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one state used by one agent, or by its child machines."""

    node: str
    agent: str | None = None
    machine: str | None = None
    """The child machines, when it was they who used it."""
    spent: Spent


def shares(snapshots: Iterable[Snapshot], program: Program | None) -> list[Share]:
    """What was used, by state and agent, in the order in which they first used something."""
    found: dict[tuple[str, str | None, str | None], Spent] = {}
    before: Snapshot | None = None
    for snapshot in snapshots:
        used = snapshot.spent if before is None else _more(before.spent, snapshot.spent)
        if used is not None and used != Spent():
            key = (BEFORE, None, None) if before is None else _spender(before, snapshot, program)
            found[key] = found[key].plus(used) if key in found else used
        before = snapshot
    return [
        Share(node=node, agent=agent, machine=machine, spent=spent)
        for (node, agent, machine), spent in found.items()
    ]


def own(parts: Iterable[Share]) -> Spent:
    """The sum without what is counted elsewhere: in the children themselves, and before a fork."""
    return total(s.spent for s in parts if s.machine is None and s.node != BEFORE)


def total(parts: Iterable[Spent]) -> Spent:
    """The sum."""
    result = Spent()
    for part in parts:
        result = result.plus(part)
    return result


def _more(old: Spent, new: Spent) -> Spent | None:
    if old is new or old == new:
        return None
    cost = new.cost - old.cost
    return Spent(
        calls=new.calls - old.calls,
        input_tokens=new.input_tokens - old.input_tokens,
        output_tokens=new.output_tokens - old.output_tokens,
        cost=round(cost, 12),
        # Once one price is not known the totals cannot tell; that this one cost something does.
        priced=new.priced or (not old.priced and cost > 0),
    )


def _spender(old: Snapshot, new: Snapshot, program: Program | None) -> tuple[str, str | None, str | None]:
    """The state whose effect was answered between two snapshots, with its agent or machines."""
    still = frozenset(new.pending)
    effect = next((e for e in old.pending if e not in still), None)
    instance_id, _, key = effect.split("/", 2) if effect is not None else ("0", "", old.root.op)
    node = old.instances[instance_id].node
    place = program.nodes.get(node) if program is not None else None
    at = -1 if place is None else place.index(key.partition(".")[0])
    if place is None or at < 0:
        return node, None, None
    op = place.ops[at]
    if op.kind == "children":
        names = dict.fromkeys(call.machine for call in op.calls)
        return node, None, ", ".join(names)
    return node, getattr(op, "agent", None), None
