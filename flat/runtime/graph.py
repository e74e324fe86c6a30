"""A machine as a picture, in Mermaid text: drawn from the program that runs, so that it cannot disagree."""

from __future__ import annotations

from collections.abc import Iterator

from flat.core.ops import Action, AnyOp, Branch, Call, Children, Converse, Launch, Wait
from flat.core.program import END, START, Node, Program

LABEL = 80
"""Characters of a condition that are shown."""


def mermaid(program: Program) -> str:
    """The states as boxes, the transitions as arrows with their conditions. Stable for git."""
    nodes = {name: node for name, node in program.nodes.items() if name not in (START, END)}
    ids = {name: f"s{number}" for number, name in enumerate(nodes)}
    lines = ["flowchart TD", "    begin((( )))"]
    lines += [f"    {ids[name]}{_box(node)}" for name, node in nodes.items()]
    if program.initial in ids:
        lines.append(f"    begin --> {ids[program.initial]}")
    for name, node in nodes.items():
        lines += [f"    {ids[name]} {arrow}" for arrow in _arrows(node, ids)]
    return "\n".join(lines) + "\n"


def _box(node: Node) -> str:
    words = [node.name, *(word for op in node.ops if (word := _word(op)))]
    text = "<br/>".join(escaped(word) for word in words)
    return f'(["{text}"])' if node.final else f'["{text}"]'


def _word(op: AnyOp) -> str:
    match op:
        case Call():
            return f"agent {op.agent}"
        case Converse():
            return f"agent {op.agent} with tools"
        case Action():
            return f"action {op.action}"
        case Children():
            names = ", ".join(call.machine for call in op.calls)
            return f"{'each' if op.foreach is not None else 'machine'} {names}"
        case Launch():
            return f"launches {', '.join(op.machines)}"
        case Wait():
            return f"waits for {op.channel.source}"
    return ""


def _arrows(node: Node, ids: dict[str, str]) -> Iterator[str]:
    for op in node.ops:
        if isinstance(op, Branch):
            for condition, target in op.arms:
                label = "" if condition is None else f'|"{escaped(_short(condition.source))}"|'
                yield f"-->{label} {ids[target]}"
    for failure, target in node.on_error.items():
        label = "error" if failure == "default" else failure
        yield f'-.->|"{escaped(label)}"| {ids[target]}'


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LABEL else f"{flat[: LABEL - 1]}…"


def escaped(text: str) -> str:
    """Text that Mermaid, and the HTML it makes, show as it is."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"#{ord(c)};" if c in '#&<>"`\\|;' else c for c in shown)
