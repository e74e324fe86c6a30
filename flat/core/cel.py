"""Conditions in CEL, the Common Expression Language: `context.score >= 8 && !context.failed`.

The language is that of `cel-expr-python`, which wraps the C++ implementation that the CEL project itself maintains
(wheels for Python 3.11 to 3.14 on Linux, macOS and Windows; no dependencies; imported in 10 ms). It was chosen over
`common-expression-language` (a Rust binding: a long `a + b + …` or `a.b.c…` overflows its stack and kills the process,
nested loops run without end, `size` counts bytes, `bool`, `string(bool)` and time zones are missing) and over
`cel-python` (pure Python: `1 == null` and `1 == 1.0` are errors, `true == 1` is true, loops are unbounded, and a
regular expression library and a date library come with it). This one checks types when it compiles, gives positions,
stops after 10,000 turns of loops and at 32 levels of nesting, and its `matches` (RE2) takes linear time.

What it lacks is done here: values are converted (`cel_values`), since it takes neither tuples, sets nor times inside a
mapping; a condition that may need more memory than `MAX_BYTES` is refused before it is evaluated, by an estimate from
its text and the size of what it reads (`cel_source`); messages become advice (`cel_advice`).

The names are `context` and `now`, the time (UTC) of the event that is being handled, so that an execution that is
replayed or moved decides the same. A missing key is an error, unless the other side of `||` or `&&` decides.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from flat.core import cel_advice
from flat.core.cel_source import Reading, read
from flat.core.cel_values import Conversion, time_of
from flat.core.condition import Condition, Test
from flat.core.values import Scope
from flat.errors import ExpressionError

MAX_SOURCE = 10_000
MAX_LOOPS = 16
MAX_BYTES = 48 * 1024 * 1024
"""What one evaluation may take, by estimate."""
MISSING = "conditions in CEL need the package cel-expr-python"
INSTALL = "pip install 'flat[cel]'"


class CelCondition(Condition):
    """A condition in CEL, compiled at most once, when first needed.

    >>> CelCondition("context.tries < 3 && !has(context.done)").test({"context": {"tries": 1}})
    True
    """

    __slots__ = ()
    engine = "cel"

    def test(self, scope: Scope, at: float | None = None) -> bool:
        return super().test(scope if at is None else {**scope, "now": at})

    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain.path for chain in read(self.source).chains))

    def _parsed(self) -> Test:
        return _Program(self.source)


def is_installed() -> bool:
    """Whether conditions in CEL can be compiled here."""
    try:
        _environment()
    except ExpressionError:
        return False
    return True


@cache
def _environment() -> Any:
    """The library, told which names there are. Kept, because it is the same for all conditions."""
    try:
        from cel_expr_python import cel
        from google.protobuf import timestamp_pb2  # noqa: F401 - the library's form of times
    except ImportError as error:
        raise ExpressionError(f"{MISSING}, which cannot be imported ({error})", hint=INSTALL) from error
    of = cel.Type
    return cel.NewEnv(variables={"context": of.Map(of.STRING, of.DYN), "now": of.TIMESTAMP})


class _Program:
    """A compiled condition, called with a scope."""

    __slots__ = ("expression", "reading", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > MAX_SOURCE:
            raise ExpressionError(f"the condition is longer than {MAX_SOURCE:,} characters")
        if (odd := next((n for n, c in enumerate(source) if not _writable(c)), None)) is not None:
            raise ExpressionError(f"the character U+{ord(source[odd]):04X} does not belong here", offset=odd)
        self.reading: Reading = read(source)
        if len(self.reading.loops) > MAX_LOOPS:
            raise ExpressionError(f"the condition has more than {MAX_LOOPS} loops")
        environment = _environment()
        try:
            self.expression = environment.compile(source)
        except RuntimeError as error:
            raise cel_advice.refused(source, str(error), self.reading) from None
        kind = self.expression.return_type().name()
        if kind not in ("BOOL", "DYN"):
            raise cel_advice.not_boolean(source, kind)

    def __call__(self, scope: Scope) -> bool:
        context = scope.get("context")
        try:
            result = self.expression.eval(data=self._data(scope, context))
        except (RuntimeError, MemoryError) as error:
            raise cel_advice.failed(self.source, str(error), self.reading, context) from None
        kind = result.type().name()
        if kind == "BOOL":
            return bool(result.value())
        if kind == "ERROR":
            raise cel_advice.failed(self.source, str(result.value()), self.reading, context)
        raise cel_advice.not_boolean(self.source, kind)

    def _data(self, scope: Scope, context: Any) -> dict[str, Any]:
        """The values of the names, as far as the condition reads them."""
        reading, conversion = self.reading, Conversion()
        context = context or {}
        found, weights = {}, {}
        for name in context if reading.whole else reading.keys:
            if name in context:
                before = conversion.weight
                found[name] = conversion.value(context[name], f"context.{name}")
                weights[name] = conversion.weight - before
        worst = reading.worst(weights, conversion.longest, conversion.largest, len(self.source))
        if worst > MAX_BYTES:
            said = f"the condition could take {worst // 1024 // 1024:,} MiB with these values"
            hint = f"the limit is {MAX_BYTES // 1024 // 1024} MiB: compute a part of it in an action"
            raise ExpressionError(said, hint=hint)
        data: dict[str, Any] = {"context": found}
        if reading.uses_now:
            if "now" not in scope:
                raise ExpressionError("there is no `now` here", hint="give the time of the event to `test`")
            data["now"] = time_of(scope["now"])
        return data


def _writable(character: str) -> bool:
    return character in "\t\n\r" or (character >= " " and not "\ud800" <= character <= "\udfff")
