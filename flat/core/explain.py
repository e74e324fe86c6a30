"""Why a value in the context is text: the template that made it so, for the error that it led to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flat.core.failure import Failure, failure_of
from flat.core.ops import Assign
from flat.core.program import Program
from flat.core.template import Template
from flat.errors import ExpressionError, FlatError


def explained(error: FlatError, program: Program) -> Failure:
    """The failure that an error is, with the place of the template that is to blame where there is one."""
    failure = failure_of(error)
    if isinstance(error, ExpressionError) and error.path.startswith("context."):
        name = error.path.split(".")[1]
        for template in _writers(program, name):
            at = f" at {template.location}" if template.location else ""
            inside = template.source.strip().removeprefix("{{").removesuffix("}}").strip()
            text = f"`context.{name}` is text because of the template{at}: a template always gives text"
            way = f"; write `{inside}` without braces to keep its type" if Template(inside).path() else ""
            return replace(failure, detail=f"{failure.detail}\n  help: {text}{way}")
    return failure


def _writers(program: Program, name: str) -> Iterator[Template]:
    """The Jinja templates that write a key of the context."""
    parts = [part for key, part in program.context.parts if key == name]
    for node in program.nodes.values():
        for op in node.ops:
            if isinstance(op, Assign):
                parts += [value for key, value in op.entries if key == name]
    for part in parts:
        if isinstance(part, Template) and part.is_jinja and not part.native:
            yield part
