"""What tools and commands have in common: a named function of the author's, and what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Generic

from typing_extensions import ParamSpec, TypeVar

from flat.errors import CharterError
from flat.tree.schema import Schema, as_schema
from flat.tree.signature import Signature

P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)
IN_DOUBT = ("retry", "ask", "fail")


class Operation(Generic[P, R]):
    """A function by a name. Calling the object calls the function, so that it can be tested by itself."""

    kind: ClassVar[str]

    def __init__(
        self, name: str, description: str, input_schema: Any, execute: Callable[..., Any] | None, *,
        safe: bool, in_doubt: str | None, signature: Signature[Any] | None,
    ) -> None:  # fmt: skip
        where = f'{self.kind} "{name}"'
        if execute is None:
            raise CharterError("incomplete", f"{where}: `execute` is missing; give the function that it runs")
        self.name, self.description, self.execute, self.signature = name, description, execute, signature
        self.in_doubt = _policy(in_doubt, safe, where)
        self.schema: Schema[Any] = (
            signature.arguments if signature else as_schema(input_schema or {"type": "object"})
        )
        self._takes_context = signature is None and _positional_count(execute) >= 2

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.execute(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def invoke(self, value: Any, context: Any) -> Any:
        """Call the function with a parsed input. May return an awaitable."""
        if self.signature is not None:
            return self.signature.call(value, {"ctx": context})
        return self.execute(value, context) if self._takes_context else self.execute(value)


def _policy(in_doubt: str | None, safe: bool, where: str) -> str:
    """The checked policy for a call that may have happened."""
    policy = in_doubt or ("retry" if safe else "fail")
    if policy not in IN_DOUBT and not policy.startswith("verify:"):
        raise CharterError(
            "bad_policy",
            f"{where}: in_doubt cannot be {policy!r}; use {', '.join(IN_DOUBT)} or verify:<name>",
        )
    return policy


def _positional_count(fn: Callable[..., Any]) -> int:
    """How many arguments a function takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return 2
    return sum(p.kind in kinds for p in parameters)
