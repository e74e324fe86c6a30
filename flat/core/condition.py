"""Conditions: when a transition is taken. `context.tries < 3 and not context.done`

This is the language `simple`; `flat.core.cel` has the other one.

A condition is compiled once, to closures over the syntax tree: no `eval`, no attribute access, no calls, so a
condition can only read mappings and sequences. Compiling is put off until the first test or check, since
a large file holds many conditions that a run never reaches.

What differs from Python: a missing key is null, null is never smaller or greater than anything, and
`and`/`or` give true or false instead of an operand. The commonest shapes (a path, or a path against a
constant) have closures of their own; the general ones are in `_compile`.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, ClassVar

from flat.core import operators
from flat.core.expression import (
    Binary,
    Compare,
    Index,
    ListOf,
    Literal,
    Logic,
    Member,
    Negate,
    Node,
    Not,
    Path,
    parse,
    show,
)
from flat.core.operators import Refusal, describe
from flat.core.values import Reader, Scope, member, path_reader
from flat.errors import ExpressionError, Location, did_you_mean

MAX_TEXT = 262_144
"""Characters or elements that `+` may produce."""
MAX_REPEATED = 10_000
"""Characters or elements that `*` may produce."""
MAX_LIST = 100_000
"""Elements and characters that a list literal may hold."""

Test = Callable[[Scope], bool]

_EQUALITY: Mapping[str, Callable[[Any, Any], Any]] = {"==": operator.eq, "!=": operator.ne}
_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Condition:
    """An immutable condition. Equal to another with the same text; compiled at most once, when first needed.

    >>> Condition("context.tries < 3").test({"context": {"tries": 1}})
    True
    """

    __slots__ = ("_test", "location", "roots", "source")
    engine: ClassVar[str] = "simple"
    source: str
    location: Location | None
    roots: tuple[str, ...]
    _test: Test | None

    def __init__(
        self, source: str, location: Location | None = None, *, roots: Collection[str] = ("context",)
    ) -> None:
        put = object.__setattr__
        put(self, "source", source)
        put(self, "location", location)
        put(self, "roots", roots if type(roots) is tuple else tuple(roots))
        put(self, "_test", None)

    def test(self, scope: Scope, at: float | None = None) -> bool:
        """Whether the condition holds. Raises `ExpressionError`, and nothing else.

        `at` is the time of the event that is being handled, for languages that have a name for it.
        """
        try:
            return (self._test or self._compiled())(scope)
        except ExpressionError as error:
            raise self._placed(error) from None
        except RecursionError:
            raise self._placed(ExpressionError("the values are nested too deeply to compare")) from None
        except Exception as error:
            raise self._placed(ExpressionError(f"{type(error).__name__}: {error}")) from error

    def check(self) -> None:
        """Compile now; raises `ExpressionError` when the text is not a condition."""
        try:
            self._compiled()
        except ExpressionError as error:
            raise self._placed(error) from None

    def paths(self) -> tuple[str, ...]:
        """The dotted paths that the condition reads, in order of appearance."""
        found: list[str] = []
        if self.source.strip():
            _collect(parse(self.source), found)
        return tuple(dict.fromkeys(found))

    def _compiled(self) -> Test:
        if self._test is None:
            object.__setattr__(self, "_test", self._compile())
        assert self._test is not None
        return self._test

    def _compile(self) -> Test:
        if not self.source.strip():
            return _always
        try:
            return self._parsed()
        except RecursionError:
            raise ExpressionError("the condition is nested too deeply") from None

    def _parsed(self) -> Test:
        return _compiled(self.source, self.roots)

    def _placed(self, error: ExpressionError) -> ExpressionError:
        """The same error, with this condition's text and the place in its file."""
        place = self.location and self.location.moved_into(self.source, error.offset)
        return ExpressionError(
            error.message,
            source=self.source,
            offset=error.offset,
            location=place,
            hint=error.hint,
            path=error.path,
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a condition is immutable; cannot set {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Condition):
            return NotImplemented
        return (self.engine, self.source, self.roots) == (other.engine, other.source, other.roots)

    def __hash__(self) -> int:
        return hash((self.engine, self.source))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (self.engine, self.source, self.location, self.roots))


@lru_cache(maxsize=1024)
def _compiled(source: str, roots: tuple[str, ...]) -> Test:
    """The closures of a text, which hold no state: conditions are often repeated, and checked before they are used."""
    return _Compiler(source, roots).test(parse(source))


def _restore(engine: str, source: str, location: Location | None, roots: tuple[str, ...]) -> Condition:
    return condition_class(engine)(source, location, roots=roots)


def condition_class(engine: str) -> type[Condition]:
    """The conditions of an expression engine: `simple` or `cel`."""
    if engine == "simple":
        return Condition
    if engine == "cel":
        from flat.core.cel import CelCondition  # which is built on this module, and rarely needed

        return CelCondition
    raise ExpressionError(f'there is no expression engine "{engine}"', hint="known: simple, cel")


def _always(scope: Scope) -> bool:
    return True


class _Compiler:
    """Syntax tree to closures. Each closure takes the scope; those of `test` give a bool."""

    def __init__(self, source: str, roots: tuple[str, ...]) -> None:
        self.source, self.roots = source, roots

    def test(self, node: Node) -> Test:
        """A closure for the truth of a node."""
        match node:
            case Logic():
                return self._logic(node)
            case Not():
                holds = self.test(node.operand)
                return lambda scope: not holds(scope)
            case Compare():
                return self._compare(node)
        value = self.value(node)
        return lambda scope: bool(value(scope))

    def value(self, node: Node) -> Reader:
        """A closure for the value of a node."""
        match node:
            case Literal():
                constant = node.value
                return lambda scope: constant
            case Path():
                self._known(node)
                return path_reader(node.root, node.names)
            case Member():
                base, name = self.value(node.base), node.name
                return lambda scope: member(base(scope), name)
            case Index():
                return self._index(node)
            case ListOf():
                return self._list(node)
            case Negate():
                return self._guarded(node, (node.operand,), operators.negate)
            case Binary():
                return self._binary(node)
        return self.test(node)

    def _known(self, node: Path) -> None:
        if node.root in self.roots:
            return
        if node.root in ("input", "output"):
            hint = f"store it with output_to_context and write `context.{'.'.join(node.names) or 'name'}`"
            message = f"a condition cannot read `{node.root}`"
        elif node.root.lower() in ("none", "null", "nil", "undefined", "true", "false"):
            right = {"true": "true", "false": "false"}.get(node.root.lower(), "null")
            message, hint = f"unknown name `{node.root}`", f"write `{right}`"
        else:
            message = f"unknown name `{node.root}`"
            hint = f"write `context.{show(node)}`, or quote it if it is text"
            if close := difflib.get_close_matches(node.root, self.roots, n=1, cutoff=0.75):
                hint = did_you_mean(node.root, close)
        raise ExpressionError(message, source=self.source, offset=node.offset, hint=hint)

    def _logic(self, node: Logic) -> Test:
        parts = tuple(self.test(part) for part in node.parts)
        stop = node.word == "or"
        if len(parts) == 2:
            first, second = parts
            if stop:
                return lambda scope: first(scope) or second(scope)
            return lambda scope: first(scope) and second(scope)

        def decide(scope: Scope) -> bool:
            for part in parts:
                if part(scope) is stop:
                    return stop
            return not stop

        return decide

    def _compare(self, node: Compare) -> Test:
        if len(node.rest) == 1:
            symbol, last = node.rest[0]
            return self._pair(symbol, node.first, last, node.offset)
        nodes = (node.first, *(part for _, part in node.rest))
        values = tuple(self.value(part) for part in nodes)
        pairs = tuple(
            (self._relation(symbol, nodes[n], nodes[n + 1], node.offset), values[n + 1])
            for n, (symbol, _) in enumerate(node.rest)
        )
        first = values[0]

        def chain(scope: Scope) -> bool:
            left = first(scope)
            for relation, value in pairs:
                right = value(scope)
                if not relation(left, right):
                    return False
                left = right
            return True

        return chain

    def _pair(self, symbol: str, left: Node, right: Node, offset: int) -> Test:
        relation = self._relation(symbol, left, right, offset)
        value = self.value(left)
        if isinstance(right, Literal):
            quick = _EQUALITY.get(symbol) or _ORDER.get(symbol)
            if quick is not None and type(right.value) in _PLAIN:
                if isinstance(left, Path) and len(left.names) == 1:
                    return _path_against_constant(left.root, left.names[0], quick, relation, right.value)
                return _against_constant(value, quick, relation, right.value)
        other = self.value(right)
        return lambda scope: relation(value(scope), other(scope))

    def _relation(self, symbol: str, left: Node, right: Node, offset: int) -> Callable[[Any, Any], bool]:
        if symbol in _EQUALITY:
            compare = _EQUALITY[symbol]
            return lambda a, b: bool(compare(a, b))
        if symbol in _ORDER:
            order = _ORDER[symbol]

            def ordered(a: Any, b: Any) -> bool:
                if type(a) is type(b) and type(a) in _PLAIN:
                    return bool(order(a, b))
                try:
                    return operators.ordered(order, a, b)
                except Refusal as refusal:
                    raise self._refused(refusal, (left, right), offset) from None

            return ordered
        wanted = symbol == "in"

        def within(a: Any, b: Any) -> bool:
            try:
                return operators.contains(b, a) is wanted
            except Refusal as refusal:
                raise self._refused(refusal, (left, right), offset) from None

        return within

    def _binary(self, node: Binary) -> Reader:
        symbol = node.symbol
        if symbol == "+":
            return self._guarded(
                node, (node.left, node.right), lambda a, b: operators.add(a, b, limit=MAX_TEXT)
            )
        if symbol == "*":
            return self._guarded(
                node, (node.left, node.right), lambda a, b: operators.multiply(a, b, limit=MAX_REPEATED)
            )
        return self._guarded(node, (node.left, node.right), lambda a, b: operators.arithmetic(symbol, a, b))

    def _guarded(
        self, node: Binary | Negate, operands: tuple[Node, ...], apply: Callable[..., Any]
    ) -> Reader:
        """`apply` to the operands' values; a refusal becomes an error at this node."""
        values = tuple(self.value(operand) for operand in operands)

        def compute(scope: Scope) -> Any:
            try:
                return apply(*(value(scope) for value in values))
            except Refusal as refusal:
                raise self._refused(refusal, operands, node.offset) from None

        return compute

    def _index(self, node: Index) -> Reader:
        base, index = self.value(node.base), self.value(node.key)

        def read(scope: Scope) -> Any:
            value, key = base(scope), index(scope)
            try:
                if isinstance(value, Mapping) or (
                    isinstance(value, list | tuple | str) and isinstance(key, int)
                ):
                    return value[key]
            except (LookupError, TypeError):
                raise self._no_item(node, value, key) from None
            raise self._no_item(node, value, key)

        return read

    def _no_item(self, node: Index, value: Any, key: Any) -> ExpressionError:
        of, hint = show(node.base), ""
        if isinstance(value, Mapping):
            message = f"`{of}` has no key {_brief(key)}"
            hint = did_you_mean(key, value) if isinstance(key, str) else ""
        elif isinstance(value, list | tuple | str) and isinstance(key, int):
            message = (
                f"`{of}` has {len(value)} element{'' if len(value) == 1 else 's'}, so no `[{_brief(key)}]`"
            )
        else:
            message = f"`{of}` is {describe(value)} and cannot be indexed by {_brief(key)}"
        path = of if isinstance(node.base, Path) else ""
        return ExpressionError(message, source=self.source, offset=node.offset, hint=hint, path=path)

    def _list(self, node: ListOf) -> Reader:
        items = tuple(self.value(item) for item in node.items)
        if all(isinstance(item, Literal) for item in node.items):
            constants = [item.value for item in node.items if isinstance(item, Literal)]
            return lambda scope: constants

        def build(scope: Scope) -> list[Any]:
            built = [item(scope) for item in items]
            if operators.weigh(built, MAX_LIST) > MAX_LIST:
                message = f"the list would hold more than {MAX_LIST:,} characters and elements"
                raise ExpressionError(message, source=self.source, offset=node.offset)
            return built

        return build

    def _refused(self, refusal: Refusal, operands: tuple[Node, ...], offset: int) -> ExpressionError:
        """What an operator refused, told in the condition's own words."""
        named = [f"`{_brief_source(show(operand))}`" for operand in operands]
        message = refusal.naming(*named)
        culprit = operands[refusal.culprit] if refusal.culprit is not None else None
        path = show(culprit) if isinstance(culprit, Path) else ""
        at = culprit.offset if isinstance(culprit, Path) else offset
        return ExpressionError(message, source=self.source, offset=at, hint=refusal.hint, path=path)


_PLAIN = frozenset({int, float, str})


def _path_against_constant(
    root: str,
    name: str,
    quick: Callable[[Any, Any], Any],
    relation: Callable[[Any, Any], bool],
    constant: Any,
) -> Test:
    """`context.i >= 2000`: same-typed values are compared at once, anything else takes the general way."""
    kind = type(constant)

    def test(scope: Scope) -> bool:
        value = scope.get(root)
        value = value.get(name) if type(value) is dict else member(value, name)
        if type(value) is kind:
            return quick(value, constant)  # type: ignore[no-any-return]
        return relation(value, constant)

    return test


def _against_constant(
    value: Reader, quick: Callable[[Any, Any], Any], relation: Callable[[Any, Any], bool], constant: Any
) -> Test:
    kind = type(constant)

    def test(scope: Scope) -> bool:
        found = value(scope)
        return quick(found, constant) if type(found) is kind else relation(found, constant)

    return test


def _brief(key: Any) -> str:
    return _brief_source(repr(key)) if isinstance(key, str | int | float) else describe(key)


def _brief_source(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


def _collect(node: Node, found: list[str]) -> None:
    if isinstance(node, Path):
        found.append(show(node))
        return
    for part in _children(node):
        _collect(part, found)


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Member():
            return (node.base,)
        case Index():
            return (node.base, node.key)
        case ListOf():
            return node.items
        case Negate() | Not():
            return (node.operand,)
        case Binary():
            return (node.left, node.right)
        case Compare():
            return (node.first, *(part for _, part in node.rest))
        case Logic():
            return node.parts
    return ()
