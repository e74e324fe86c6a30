"""Conditions: the grammar, the meaning of each operator, and the advice given for mistakes."""

from __future__ import annotations

import operator
import pickle
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flat.core import expression as x
from flat.core.condition import Condition, condition_class
from flat.core.expression import parse, show
from flat.errors import ExpressionError, Location

CONTEXT: dict[str, Any] = {
    "n": 9, "f": 2.5, "t": "text", "nine": "9", "l": [1, "a", [2]], "d": {"k": {"v": 1}, "items": "key"},
    "none": None, "yes": True, "no": False, "c": 5, "items": "mine", "approved": "True", "e": [],
}  # fmt: skip


def holds(source: str, context: Any = None) -> bool:
    return Condition(source).test({"context": CONTEXT if context is None else context})


def failure(source: str, location: Location | None = None) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        Condition(source, location).test({"context": CONTEXT})
    return caught.value


@pytest.mark.parametrize(
    "source",
    [
        "", "   ", "context.n == 9", "context.n >= 9", "context.n > 8.5", "context.n < 10", "context.n != 8",
        "context.t == 'text'", 'context.t == "text"', "context.n == 9.0", "context.yes == 1", "true", "True",
        "context.missing == null", "context.missing.deep == None", "context.none.x == null",
        "context.n.x == null",
        "context.t.upper == null", "context.items == 'mine'", "context.d.items == 'key'",
        "context.d['k'].v == 1",
        "context['n'] == 9", "context.l[0] == 1", "context.l[-1][0] == 2", "context.t[0] == 't'",
        "not context.missing", "not not context.n", "not context.n == 8", "context.n and context.t",
        "context.none or context.t", "context.no or context.none or context.n", "(context.c or 0) == true",
        "1 < 2 < 3", "not (1 < 3 < 2)", "1 < context.n <= 9 == context.n", "context.approved == 'True'",
        "context.nine >= '3'", "context.n + 1 == 10", "context.n - 1 == 8", "context.n * 2 == 18",
        "context.n / 2 == 4.5",
        "context.n % 4 == 1", "-context.n == -9", "context.n > -1", "- 2 + 3 == 1", "-(2 + 3) == -5",
        "2 + 3 * 4 == 14",
        "(2 + 3) * 4 == 20", "10 - 3 - 2 == 5", "'a' + 'b' == 'ab'", "'a' 'b' == 'ab'", "'ab' * 2 == 'abab'",
        "2 * [1] == [1, 1]", "[1] + [2] == [1, 2]", "context.n in [8, 9]", "context.n not in [1]",
        "'ex' in context.t",
        "'k' in context.d", "'z' not in context.d", "(1 in context.missing) == false", "[] == context.e",
        "[1, 2,] == [1, 2]", "0x10 == 16", "0b11 == 3", "0o17 == 15", "1_000 == 1000", "1e3 == 1000",
        ".5 == 0.5",
        "1. == 1", "'it\\'s' == \"it's\"", "'\\n\\t\\x41\\u0042' == '\\n\\tAB'", "context . n == 9",
        "context.n == 9  ", "  context.n == 9", "context.n\n  == 9", "(context.n\n == 9)", "context.l == [1, 'a', [2]]",
        "context.no == false", "context.none == null and context.n", "null == None", "[context.n] == [9]",
        "context.not_there != 1", "context.android == null", "context.in_list == null",
    ],
)  # fmt: skip
def test_these_conditions_hold(source: str) -> None:
    assert holds(source) is True


@pytest.mark.parametrize(
    "source",
    [
        "false", "null", "0", "''", "[]", "context.missing", "context.missing.deep", "context.none",
        "context.e",
        "(context.c or 0) > 1", "context.none >= 1", "context.none < 1", "1 > context.none",
        "context.missing <= 0",
        "context.none > context.none", "1 in context.missing", "context.n == '9'", "3 > 2 > 2",
        "not context.n",
        "context.n == 9 and context.missing", "'K' in context.d", "context.l in context.d",
    ],
)  # fmt: skip
def test_these_conditions_do_not_hold(source: str) -> None:
    assert holds(source) is False


@pytest.mark.parametrize(
    ("source", "context", "expected"),
    [
        ("context.n >= 1", {"n": None}, False),
        ("(context.c or 0) > 1", {"c": 5}, False),
        ("(context.c or 0) > 0", {"c": 5}, True),
        ("context.missing.deep", {}, False),
        ("context.flag", {"flag": "False"}, True),
        ("context.flag == 'True'", {"flag": "False"}, False),
        ("context.score >= context.target", {"score": "9", "target": "10"}, True),
        ("context.keys == null", {"a": 1}, True),
        ("context.a.b.c.d == null", {"a": {"b": 1}}, True),
        ("1 < 2 < 3 == 3", {}, True),
        ("not context.a == 1", {"a": 2}, True),
        ("context.a or context.b and context.c", {"a": 1}, True),
        ("1 - -1 == 2", {}, True),
        ("-context.a % 3 == 2", {"a": 1}, True),
        ("7 / 2 == 3.5", {}, True),
        ("true + true == 2", {}, True),
        ("[1, [2, 'x']] == context.l", {"l": [1, [2, "x"]]}, True),
        ("context.n in [1, 2] and context.n not in context.l", {"n": 2, "l": []}, True),
    ],
)  # fmt: skip
def test_corners_of_the_language(source: str, context: dict[str, Any], expected: bool) -> None:
    assert holds(source, context) is expected


@pytest.mark.parametrize(
    "source",
    [
        "(1, 2)", "{}", "{'a': 1}", "{1, 2}", "~1", "+1", "2 ** 3", "7 // 2", "1 if 2 else 3", "f(1)", "lambda x: x",
        "context.l[0:1]", "f'{context}'", "b'x'", "1j", "...", "[x for x in context.l]", "context.a && 1",
        "context.a || 1", "!context.a", "1 <> 2", "context.a = 1", "context.a := 1", "context.a is 1",
        "context.a is not 1", "x", "1 2", "context.a.", "'open",
    ],
)  # fmt: skip
def test_what_the_language_lacks_is_refused_at_load(source: str) -> None:
    with pytest.raises(ExpressionError):
        Condition(source).check()


def test_and_and_or_stop_as_soon_as_they_can() -> None:
    assert holds("context.n == 9 or context.l[99]")
    assert not holds("context.n == 8 and context.l[99]")
    assert not holds("2 < 1 < context.l[99]")
    assert holds("context.no or context.n == 9 or context.l[99]")


def test_mappings_of_any_kind_are_read() -> None:
    context = MappingProxyType({"machine": MappingProxyType({"step": 3})})
    assert holds("context.machine.step == 3", context)
    assert holds("context['machine'].step == 3", context)
    assert not holds("context.machine == 3", context)
    assert not holds("context.i >= 1", MappingProxyType({}))


def test_a_scope_without_context_reads_as_null() -> None:
    assert Condition("context.i == null and context == null").test({})


@pytest.mark.parametrize(
    ("source", "message", "hint", "offset"),
    [
        ("context.a && 1", "`&&`", "write `and`", 10),
        ("context.a & 1", "`&`", "write `and`", 10),
        ("context.a || 1", "`||`", "write `or`", 10),
        ("!context.a", "`!`", "write `not`", 0),
        ("context.a === 1", "`===`", "write `==`", 10),
        ("context.a !== 1", "`!==`", "write `!=`", 10),
        ("context.a = 1", "`=` does not compare", "write `==`", 10),
        ("context.a <> 1", "`<>`", "write `!=`", 10),
        ("{{ context.a }}", "not a template", "without braces", 0),
        ("context.a == {{ context.b }}", "not a template", "without braces", 13),
        ("len(context.l) > 1", "cannot call anything: `len(…)`", "length in a template", 0),
        ("context.l.length() > 1", "cannot call anything: `length(…)`", "length in a template", 10),
        ("context.d.get('k')", "cannot call anything: `get(…)`", "null already", 10),
        ("context.t.upper()", "cannot call anything: `upper(…)`", "template", 10),
        ("context.l | length > 1", "no filters", "template", 10),
        ("context.a is not None", "`is`", "write `!= null`", 10),
        ("context.a is None", "`is`", "write `== null`", 10),
        ("context.a is null", "`is`", "write `== null`", 10),
        ("context.a is not defined", "`is`", "write `== null`", 10),
        ("context.a is 3", "`is`", "write `==`", 10),
        ("context.a if context.b else 1", "no `if … else`", "two transitions", 10),
        ("context.a ? 1 : 2", "no `if … else`", "two transitions", 10),
        ("context.n ** 2", "`**`", "", 11),
        ("context.n // 2", "`//`", "", 11),
        ("+1 == 1", "`+` sign", "leave it out", 0),
        ("context.t == 'tex", "not closed", "end it", 13),
        ("f'x' == 'x'", "before a text", "leave it out", 0),
        ("context.a AND context.b", "small letters", "`and`", 10),
        ("context.l[0:1]", "slices", "template", 11),
        ("context.t == text", "unknown name `text`", "quote it", 13),
        ("a == 1", "unknown name `a`", "write `context.a`", 0),
        ("contxt.a == 1", "unknown name `contxt`", 'did you mean "context"?', 0),
        ("input.a == 1", "cannot read `input`", "write `context.a`", 0),
        ("output == 1", "cannot read `output`", "output_to_context", 0),
        ("context.a == none", "unknown name `none`", "write `null`", 13),
        ("context.a == TRUE", "unknown name `TRUE`", "write `true`", 13),
        ("context.a ==", "ends too early", "", 12),
        ("(context.a", "ends too early", "", 10),
        ("context.a)", "does not belong", "", 9),
        ("context.a 5", "does not belong", "operator missing", 10),
        ("context.a context.b", "does not belong", "missing", 10),
        ("context.a 'x'", "not closed", "", 10),
        ("context.", "ends too early", "", 8),
        ("5a == 1", "cannot begin with a digit", "quote it", 0),
        ("1 + not context.a", "needs parentheses", "(not …)", 4),
        ("context.a not 3", "does not belong", "", 14),
        ("lambda: 1", "", "", 6),
        ("{1: 2}", "does not belong", "", 0),
        ("context.a; 1", "does not belong", "", 9),
        ("'\\N{DASH}'", "is not an escape", "", 1),
        ("08 == 8", "is not a number", "", 0),
        ("true.x", "does not belong", "", 0),
        ("context.l[99]", "has 3 elements, so no `[99]`", "", 9),
        ("context.d['kk']", "no key 'kk'", 'did you mean "k"?', 9),
        ("context.missing[0]", "`context.missing` is null", "", 15),
        ("context.l['a']", "is a list and cannot be indexed by 'a'", "", 9),
        ("context.none + 1", "`context.none` is null", "", 0),
        ("context.t + 1", "`context.t` is text ('text'), `1` is a number", "joins text", 0),
        ("context.t % 2", "`context.t` is text", "formatting", 0),
        ("context.n / 0", "division by zero: `0` is 0", "", 10),
        ("-context.t", "only a number can be negated", "", 1),
        ("1 in context.n", "`in` needs a list", "", 5),
        ("1 in context.t", "must be text", "", 2),
        ("context.d < context.d", "is a mapping", "", 0),
    ],
)
def test_a_mistake_is_explained_where_it_stands(source: str, message: str, hint: str, offset: int) -> None:
    error = failure(source)
    assert message in error.message
    assert hint in error.hint
    assert (error.offset, error.source) == (offset, source)


def test_comparing_text_with_a_number_names_the_text() -> None:
    error = failure("context.nine >= 8")
    assert error.message == "`context.nine` is text ('9'), `8` is a number"
    assert error.path == "context.nine"
    assert failure("8 < context.nine").path == "context.nine"
    assert failure("context.n < context.nine").path == "context.nine"


def test_an_error_points_into_the_file() -> None:
    plain = failure("context.n && 1", Location("m.yml", 7, 16, "    condition: context.n && 1"))
    assert str(plain).splitlines() == [
        "m.yml:7:26: `&&` is not an operator here",
        " 7 |     condition: context.n && 1",
        "   |                          ^",
        "  help: write `and`",
    ]
    quoted = failure("context.n && 1", Location("m.yml", 7, 16, '    condition: "context.n && 1"'))
    assert quoted.location is not None
    assert quoted.location.column == 27
    folded = failure("context.n\n&& 1", Location("m.yml", 7, 16, "    condition: >"))
    assert folded.location is not None
    assert folded.location.column == 16


def test_other_roots_can_be_allowed() -> None:
    condition = Condition("input.a == item", roots=("input", "item"))
    assert condition.test({"input": {"a": 3}, "item": 3})
    with pytest.raises(ExpressionError, match="unknown name `context`"):
        Condition("context.a", roots=("input",)).check()


def test_a_condition_is_an_immutable_value() -> None:
    one, same = Condition("context.n == 9"), Condition("context.n == 9", Location("f", 1, 1))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Condition("context.n == 8")
    assert one != "context.n == 9"
    assert one.test({"context": {"n": 9}})
    assert pickle.loads(pickle.dumps(one)).test({"context": {"n": 9}})
    assert repr(one) == "Condition('context.n == 9')"
    with pytest.raises(AttributeError, match="immutable"):
        one.source = "x"


def test_nothing_is_compiled_before_it_is_needed() -> None:
    condition = Condition("context.n &&")
    with pytest.raises(ExpressionError):
        condition.check()


def test_an_engine_that_is_not_there_is_refused() -> None:
    assert condition_class("simple") is Condition
    with pytest.raises(ExpressionError, match="no expression engine"):
        condition_class("perl")


def test_a_condition_tells_which_paths_it_reads() -> None:
    condition = Condition("context.a > 1 and not context.b[context.c].d in [context.a, -context.e + 1]")
    assert condition.paths() == ("context.a", "context.b", "context.c", "context.e")
    assert Condition("").paths() == ()


# -- random expressions against a plain reading of the language -----------------------

_CONSTANTS = (
    st.none() | st.booleans() | st.integers(-50, 50) | st.floats(-9, 9) | st.text("ab'\"\\\n{é", max_size=4)
)
_NAMES = st.sampled_from(["a", "b", "c", "items", "or_", "n"])
_DATA = st.recursive(
    _CONSTANTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)


def _trees() -> st.SearchStrategy[x.Node]:
    def negatable(value: Any) -> bool:
        return isinstance(value, bool) or not isinstance(value, int | float)

    leaf = st.builds(x.Literal, _CONSTANTS, st.just(0)) | st.builds(
        x.Path, st.just("context"), st.lists(_NAMES, max_size=3).map(tuple), st.just(0)
    )

    def grown(inner: st.SearchStrategy[x.Node]) -> st.SearchStrategy[x.Node]:
        zero = st.just(0)
        composed = inner.filter(lambda n: not isinstance(n, x.Literal))
        unsigned = inner.filter(lambda n: not isinstance(n, x.Literal) or negatable(n.value))
        pairs = st.tuples(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in"]), inner)
        return st.one_of(
            st.builds(x.Member, composed.filter(lambda n: not isinstance(n, x.Path)), _NAMES, zero),
            st.builds(x.Index, composed, inner, zero),
            st.builds(x.ListOf, st.lists(inner, max_size=3).map(tuple), zero),
            st.builds(x.Negate, unsigned, zero),
            st.builds(x.Not, inner, zero),
            st.builds(x.Binary, st.sampled_from(["+", "-", "*", "/", "%"]), inner, inner, zero),
            st.builds(x.Compare, inner, st.lists(pairs, min_size=1, max_size=2).map(tuple), zero),
            st.builds(
                x.Logic,
                st.sampled_from(["and", "or"]),
                st.lists(inner, min_size=2, max_size=3).map(tuple),
                zero,
            ),
        )

    return st.recursive(leaf, grown, max_leaves=8)


class _Fails(Exception):
    """The reference says that evaluation must fail."""


_RELATIONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
_ARITHMETIC = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod,
}  # fmt: skip


def _reference(node: x.Node, context: Any) -> Any:
    def value(part: x.Node) -> Any:
        return _reference(part, context)

    match node:
        case x.Literal():
            return node.value
        case x.Path():
            found = context
            for name in node.names:
                found = found.get(name) if isinstance(found, dict) else None
            return found
        case x.Member():
            base = value(node.base)
            return base.get(node.name) if isinstance(base, dict) else None
        case x.Index():
            base, key = value(node.base), value(node.key)
            if not isinstance(base, dict) and not isinstance(key, int):
                raise _Fails
            try:
                return base[key]
            except (TypeError, LookupError):
                raise _Fails from None
        case x.ListOf():
            return [value(item) for item in node.items]
        case x.Negate():
            return _apply("-", 0, value(node.operand), negate=True)
        case x.Not():
            return not value(node.operand)
        case x.Binary():
            return _apply(node.symbol, value(node.left), value(node.right))
        case x.Compare():
            left = value(node.first)
            for symbol, part in node.rest:
                right = value(part)
                if not _relate(symbol, left, right):
                    return False
                left = right
            return True
        case x.Logic():
            if node.word == "and":
                return all(value(part) for part in node.parts)
            return any(value(part) for part in node.parts)


def _apply(symbol: str, left: Any, right: Any, negate: bool = False) -> Any:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    joined = symbol == "+" and type(left) is type(right) and isinstance(left, str | list)
    repeated = symbol == "*" and {isinstance(left, str | list), isinstance(right, str | list)} == {
        True,
        False,
    }
    if not (numbers or joined or (repeated and (isinstance(left, int) or isinstance(right, int)))):
        raise _Fails
    try:
        return -right if negate else _ARITHMETIC[symbol](left, right)
    except (ZeroDivisionError, OverflowError):
        raise _Fails from None


def _relate(symbol: str, left: Any, right: Any) -> bool:
    if symbol in ("in", "not in"):
        if right is None:
            return symbol == "not in"
        if isinstance(right, str) and not isinstance(left, str):
            raise _Fails
        if not isinstance(right, str | list | dict):
            raise _Fails
        found = left in right if not isinstance(right, dict) or not isinstance(left, list | dict) else False
        return bool(found) is (symbol == "in")
    if symbol not in ("==", "!=") and (left is None or right is None):
        return False
    try:
        return bool(_RELATIONS[symbol](left, right))
    except TypeError:
        raise _Fails from None


def _without_offsets(node: Any) -> Any:
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        parts = (getattr(node, name) for name in node._fields if name != "offset")
        return (type(node).__name__, *(_without_offsets(part) for part in parts))
    if isinstance(node, tuple):
        return tuple(_without_offsets(part) for part in node)
    return (type(node).__name__, repr(node))


@given(_trees())
def test_what_is_shown_parses_to_the_same_tree(tree: x.Node) -> None:
    assert _without_offsets(parse(show(tree))) == _without_offsets(tree)


@given(_trees(), st.dictionaries(_NAMES, _DATA, max_size=4))
def test_random_expressions_mean_what_they_say(tree: x.Node, context: dict[str, Any]) -> None:
    condition = Condition(show(tree))
    try:
        expected = bool(_reference(tree, context))
    except _Fails:
        with pytest.raises(ExpressionError):
            condition.test({"context": context})
    else:
        assert condition.test({"context": context}) is expected


@given(st.text(max_size=80), _DATA)
def test_no_text_raises_anything_but_an_expression_error(source: str, data: Any) -> None:
    with suppress(ExpressionError):
        assert Condition(source).test({"context": data}) in (True, False)


_PIECES = st.sampled_from(
    ["context", ".", "a", "[", "]", "(", ")", "==", "<", "and", "or", "not", "in", "-", "+", "*", "/", "%", "'", '"',
     "1", "1e9", "null", ",", " ", "\\", "is", "if", "!", "=", "{{", "}}", "&&", "len(", "\n", "0x", "_", "é"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=25), _DATA)
def test_no_jumble_of_tokens_raises_anything_but_an_expression_error(pieces: list[str], data: Any) -> None:
    with suppress(ExpressionError):
        assert Condition("".join(pieces)).test({"context": {"a": data}}) in (True, False)
