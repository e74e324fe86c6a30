"""The tree of an execution, for `flat runs show`: its instances, what each holds, and who waits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flat.cli.tables import cut
from flat.cli.text import one_line

Data = Mapping[str, Any]


def place_words(context: Data) -> str:
    """Where a session stands: `turn 3, step 2, open`."""
    turn = context.get("turn") or {}
    words = f"turn {turn.get('n', 0)}, step {turn.get('step', 0)}"
    return f"{words}, open" if turn.get("open") else words


def tree_lines(context: Data, width: int | None) -> list[str]:
    """The instances, a line for each."""
    tree = context.get("tree")
    return [] if tree is None else [cut(line, width) for line in _lines(tree, "", "")]


def _lines(instance: Data, first: str, rest: str) -> Iterator[str]:
    name = node_name(instance)
    marks = [one_line(instance.get("id") or "", 40)]
    if instance.get("background"):
        marks.append("background")
    if (info := instance.get("suspended")) is not None:
        marks.append(f"waits: {one_line(info.get('reason') or '', 80)}")
    state = one_line(json.dumps(instance.get("state"), ensure_ascii=False, default=str), 200)
    yield f"{first}{one_line(name, 40)}  ({', '.join(marks)})  {state}"
    for pack in instance.get("packInstances") or ():
        held = one_line(json.dumps(pack.get("state"), ensure_ascii=False, default=str), 200)
        yield f"{rest}· pack {one_line(_pack_name(pack), 40)}  {held}"
    children = instance.get("children") or ()
    for number, child in enumerate(children):
        last = number == len(children) - 1
        yield from _lines(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def node_name(instance: Data) -> str:
    """The name of an instance's node, as it is stored."""
    node = instance.get("node") or {}
    return str(node.get("ref") or node.get("name") or "inline node")


def _pack_name(pack: Data) -> str:
    inner = pack.get("pack") or {}
    return str(inner.get("ref") or inner.get("name") or pack.get("name") or "")
