"""Conditions in CEL: what each row of the language gives, what is converted, and the advice given for mistakes."""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from small import AT, final, node, program, started

from flat.core.cel import CelCondition
from flat.core.cel_source import read, tokens_of
from flat.core.condition import Condition, condition_class
from flat.core.ops import Arm, Branch
from flat.core.program_codec import program_from_data, program_to_data
from flat.errors import ExpressionError, Location, SpecError
from flat.spec.load import load_machine
from flat.spec.lower import lower

NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


class Person(BaseModel):
    name: str
    born: datetime


class Colour(Enum):
    RED = "red"


CONTEXT: dict[str, Any] = {
    "a": 1, "f": 2.5, "b": True, "no": False, "s": "text", "n": None, "l": [1, 2, 3], "d": {"k": 1}, "items": "mine",
    "u": "ünï😀", "created": "2025-12-31T12:00:00Z", "seen": datetime(2026, 1, 1, 5, tzinfo=UTC),
    "people": [{"name": "Ann", "age": 30}, {"name": "Bob", "age": 9}], "nine": "9",
}  # fmt: skip


def holds(source: str, context: Mapping[str, Any] = CONTEXT) -> bool:
    return CelCondition(source).test({"context": context}, NOW)


def failure(source: str, location: Location | None = None) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        CelCondition(source, location).test({"context": CONTEXT}, NOW)
    return caught.value


ROWS = {
    "comparison and boolean": (
        "context.a >= 1 && !context.no", "context.no || context.b", "context.a != 2", "'a' < 'b'", "context.b", "true",
        "context.l == [1, 2, 3]", "context.d == {'k': 1}", "!(context.a == 'text')", "!(context.b == 1)",
    ),
    "unary minus, modulo, ternary": (
        "context.a > -1", "-context.a == -1", "context.a % 2 == 1", "-7 % 3 == -1", "-7 / 2 == -3",
        "context.b ? true : false", "(context.a > 5 ? 'big' : 'small') == 'small'", "true ? 1 == 1 : 1 / 0 == 1",
    ),
    "membership": (
        "1 in context.l", "'k' in context.d", "!('z' in context.d)", "context.s in ['text', 'other']", "1.0 in context.l",
    ),
    "macros": (
        "context.l.all(x, x > 0)", "context.l.exists(x, x == 3)", "context.l.exists_one(x, x == 3)",
        "!context.l.exists_one(x, x > 1)", "context.l.filter(x, x > 1) == [2, 3]", "context.l.map(x, x * 2) == [2, 4, 6]",
        "context.l.map(x, x > 1, x * 2) == [4, 6]", "has(context.a)", "!has(context.zz)", "has(context.d.k)",
        "context.d.all(k, context.d[k] == 1)", "context.people.exists(p, p.name == 'Bob' && p.age < 10)",
        "[[1, 2], [3]].all(l, l.exists(x, x > 1))", "context.l.exists(x, x / 0 == 1 || x == 1)",
        "!context.l.all(x, x < 2 && x / 0 == 1)", "[].all(x, false)",
    ),
    "strings": (
        "context.s.startsWith('te')", "context.s.endsWith('xt')", "context.s.contains('ex')", "context.s.matches('^t.*t$')",
        "matches(context.s, 'ex')", "size(context.s) == 4", "context.u.size() == 4", "size(context.l) == 3",
        "context.d.size() == 1", "context.s + '!' == 'text!'", "context.u == 'ünï😀'", r"r'a\d' == 'a\\d'", "'''x''' == 'x'",
    ),
    "conversions": (
        "int('3') == 3", "int(3.7) == 3", "uint(3) == 3u", "double('1.5') == 1.5", "string(3) == '3'", "string(true) == 'true'",
        "bool('true')", "bytes('abc') == b'abc'", "type(context.a) == int", "type(context.f) == double", "type(null) == null_type",
        "type(context.l) == list", "type(context.d) == map", "dyn(1) == 1", "type(now) == google.protobuf.Timestamp",
        "int(timestamp('1970-01-01T00:00:10Z')) == 10", "string(duration('90s')) == '90s'",
    ),
    "timestamps": (
        "timestamp('2026-01-05T10:20:30.123Z').getFullYear() == 2026", "timestamp('2026-01-05T10:20:30Z').getMonth() == 0",
        "timestamp('2026-01-05T10:20:30Z').getDate() == 5", "timestamp('2026-01-05T10:20:30Z').getDayOfMonth() == 4",
        "timestamp('2026-01-05T10:20:30Z').getDayOfWeek() == 1", "timestamp('2026-01-05T10:20:30Z').getDayOfYear() == 4",
        "timestamp('2026-01-05T10:20:30Z').getHours() == 10", "timestamp('2026-01-05T10:20:30Z').getMinutes() == 20",
        "timestamp('2026-01-05T10:20:30Z').getHours('America/New_York') == 5",
        "timestamp('2026-01-05T10:20:30.123Z').getMilliseconds() == 123", "timestamp('2026-01-05T10:20:30Z').getSeconds() == 30",
        "timestamp('2026-01-01T00:00:00Z') < timestamp('2026-01-02T00:00:00Z')",
        "timestamp('2026-01-05T10:00:00+02:00') == timestamp('2026-01-05T08:00:00Z')",
    ),
    "durations": (
        "duration('24h') == duration('1440m')", "duration('1h30m').getMinutes() == 90", "duration('1h30m').getHours() == 1",
        "duration('1h30m').getSeconds() == 5400", "duration('-1h') < duration('0s')",
        "timestamp('2026-01-02T00:00:00Z') - duration('24h') == timestamp('2026-01-01T00:00:00Z')",
        "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')",
        "timestamp('2026-01-01T00:00:00Z') + duration('24h') == timestamp('2026-01-02T00:00:00Z')",
    ),
    "null": ("context.n == null", "context.a != null", "null == null", "has(context.n)"),
    "missing keys": (
        "context.missing == 1 || true", "true || context.missing == 1", "!(context.missing == 1 && false)",
        "context.missing.deep == 1 || context.a == 1",
    ),
    "int against double": (
        "context.a == 1.0", "context.f > 1", "context.a < 1.5", "1 <= context.f", "context.f + 1.0 == 3.5", "context.a + 1 == 2",
    ),
    "now": (
        "now == timestamp('2026-01-01T00:00:00Z')", "timestamp(context.created) > now - duration('24h')",
        "context.seen > now - duration('24h')", "context.seen - now == duration('5h')", "now.getFullYear() == 2026",
    ),
    "the rest": (
        "", "   ", "context['items'] == 'mine'", "context.items == 'mine'", "context.l[0] == 1", "context.d['k'] == 1",
        "[1, 2] + [3] == [1, 2, 3]", "{'a': 1}.a == 1", "0xF == 15", "1e3 == 1000.0", "true // a remark", "'k' in context.d\n&& true",
        "context.exists(k, k == 'a')", "'a' in context", "size(context) == 14", "'{{ x }}' != 'and = or'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "source"),
    [(row, s) for row, sources in ROWS.items() for s in sources],
    ids=lambda value: value[:60],
)
def test_these_conditions_hold(row: str, source: str) -> None:
    assert holds(source) is True


@pytest.mark.parametrize(
    "source",
    [
        "false",
        "context.no",
        "context.a > 1",
        "context.l.all(x, x > 1)",
        "has(context.zz)",
        "context.n != null",
    ],
)
def test_these_conditions_do_not_hold(source: str) -> None:
    assert holds(source) is False


BOTH = (
    ("context.n == 9", True), ("context.n >= 9", True), ("context.n > 8.5", True), ("context.n != 8", True), ("context.n < 9", False),
    ("context.t == 'text'", True), ('context.t == "other"', False), ("context.n == 9.0", True), ("context.yes", True),
    ("context.none == null", True), ("context.items == 'mine'", True), ("context.d['k'].v == 1", True), ("context.l[0] == 1", True),
    ("context.n + 1 == 10", True), ("context.n - 1 == 8", True), ("context.n * 2 == 18", True), ("context.n % 4 == 1", True),
    ("-context.n == -9", True), ("context.n > -1", True), ("2 + 3 * 4 == 14", True), ("(2 + 3) * 4 == 20", True),
    ("'a' + 'b' == 'ab'", True), ("context.n in [8, 9]", True), ("'k' in context.d", True), ("context.l == [1, 'a', [2]]", True),
    ("[] == context.e", True), ("context.nine == 9", False), ("context.none == 1", False), ("true", True), ("false", False),
    ("", True), ("  ", True), ("context.machine.step == 3", True), ("context.t + '!' == 'text!'", True),
)  # fmt: skip


@pytest.mark.parametrize("engine", ["simple", "cel"])
@pytest.mark.parametrize(("source", "expected"), BOTH)
def test_what_both_languages_have_means_the_same(source: str, expected: bool, engine: str) -> None:
    context = {
        "n": 9, "t": "text", "nine": "9", "l": [1, "a", [2]], "d": {"k": {"v": 1}}, "none": None, "yes": True, "items": "mine",
        "e": [], "machine": MappingProxyType({"step": 3}),
    }  # fmt: skip
    assert condition_class(engine)(source).test({"context": context}) is expected


def test_values_of_all_stored_types_are_converted() -> None:
    context = {
        "tuple": (1, 2), "set": {2, 1}, "frozen": frozenset({"x"}), "decimal": Decimal("1.5"), "bytes": b"ab", "enum": Colour.RED,
        "uuid": UUID(int=7), "path": PurePosixPath("/a/b"), "date": date(2026, 1, 2), "gap": timedelta(hours=2),
        "naive": datetime(2026, 1, 1), "east": datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        "person": Person(name="Ann", born=datetime(2000, 2, 3, tzinfo=UTC)), "machine": MappingProxyType({"step": 3}),
        "numbered": {2: "two", True: "yes"}, "unsigned": 2**64 - 1, "odd": "a\ud800b", "list": [{"at": datetime(2026, 1, 1, tzinfo=UTC)}],
    }  # fmt: skip
    for source in (
        "context.tuple == [1, 2]", "context.set == [1, 2]", "context.frozen == ['x']", "context.decimal == 1.5",
        "context.bytes == b'ab'", "context.enum == 'red'", "context.uuid == '00000000-0000-0000-0000-000000000007'",
        "context.path == '/a/b'", "context.date == '2026-01-02'", "context.gap == duration('2h')",
        "context.naive == now", "context.east == now", "context.list[0].at == now", "context.person.name == 'Ann'",
        "context.person.born.getFullYear() == 2000", "context.machine.step == 3", "context.numbered[2] == 'two'", "context.numbered[true] == 'yes'",
        "context.unsigned == 18446744073709551615u", "context.odd == 'a?b'", "context.machine.exists(k, k == 'step')",
    ):  # fmt: skip
        assert holds(source, context), source


def test_what_cel_cannot_hold_is_named() -> None:
    deep: list[Any] = []
    deep.append(deep)
    context = {
        "huge": {"n": [2**64]},
        "deep": deep,
        "bait": [object()],
        "keys": {"inner": {None: 1}},
        "fine": 1,
    }
    for source, said in (
        ("context.huge == null", "`context.huge.n[0]` is a whole number of more than 64 bits"),
        ("context.deep == null", "is nested more than 100 levels deep"),
        ("context.bait == null", "`context.bait[0]` is of type object"),
        ("context.keys == null", "`context.keys.inner` has the key None"),
    ):
        with pytest.raises(ExpressionError) as caught:
            holds(source, context)
        assert said in caught.value.message
    assert holds("context.fine == 1", context), "what is not read is not converted"


@pytest.mark.parametrize(
    ("source", "message", "hint", "offset"),
    [
        ("context.a and context.b", "`and` is not an operator", "write `&&`", 10),
        ("context.a or context.b", "`or` is not an operator", "write `||`", 10),
        ("not context.a", "`not` is not an operator", "write `!`", 0),
        ("1 not in context.l", "`not in` is not", "write `!(x in y)`", 2),
        ("context.a AND context.b", "`AND` is not an operator", "write `&&`", 10),
        ("context.b == True", "`True` is not a name", "write `true`", 13),
        ("context.a == None", "`None` is not a name", "write `null`", 13),
        ("{{ context.a }}", "not a template", "without braces", 0),
        ("context.a == {{ context.b }}", "not a template", "without braces", 13),
        ("context.a = 1", "`=` does not compare", "write `==`", 10),
        ("context.a === 1", "`===` is not", "write `==`", 10),
        ("context.a <> 1", "`<>` is not", "write `!=`", 10),
        ("context.a & context.b", "`&` is not", "write `&&`", 10),
        ("context.l | length > 1", "`|` is not", "size(x)", 10),
        ("context.a is null", "`is` is not", "write `==`", 10),
        ("context.a is not null", "`is not` is not", "write `!=`", 10),
        ("1 if context.a else 2", "no `if … else`", "condition ? a : b", 2),
        ("context.s == 'tex", "not closed", "end it", 13),
        ("context.a ==", "ends too early", "", 12),
        ("(context.a == 1", "ends too early", "", 15),
        ("context.a == 1)", "`)` does not belong", "", 14),
        ("context.a context.b", "`context` does not belong", "missing", 10),
        ("len(context.l) > 1", "no function `len`", "write `size(x)`", 0),
        ("context.s.lower() == 'x'", "no function `lower`", "template", 10),
        ("context.s.startswith('x')", "no function `startswith`", "startsWith", 10),
        ("context.s.containz('x')", "no function `containz`", 'did you mean "contains"?', 10),
        ("context.l.exists(3)", "takes a name and an expression", "context.l.exists(x, x > 1)", 10),
        ("input.a == 1", "cannot read `input`", "write `context.a`", 0),
        ("output.a.b == 1", "cannot read `output`", "write `context.a.b`", 0),
        ("contxt.a == 1", "unknown name `contxt`", 'did you mean "context"?', 0),
        ("a == 1", "unknown name `a`", "write `context.a`", 0),
        ("context.s == text", "unknown name `text`", "quote it", 13),
        ("true ||\n  context.a and true", "`and` is not", "write `&&`", 20),
        ("context.a + 1", "gives a whole number, not true or false", "compare it", None),
        ("context.s", "gives text, not true or false", "!= ''", None),
        ("'x'", "gives text", "", None),
        ("context.l", "gives a list", "size(…) > 0", None),
        ("context.n", "gives null", "== null", None),
        ("context.missing", "`context` has no key 'missing'", "has(context.missing)", 8),
        ("context.peeple.size() > 1", "`context` has no key 'peeple'", 'did you mean "people"?', 8),
        ("context.d.kk == 1", "`context.d` has no key 'kk'", 'did you mean "k"?', 10),
        ("context.d['kk'] == 1", "`context.d` has no key 'kk'", 'did you mean "k"?', 10),
        ("context.people.exists(p, p.nam == 'x')", "no key 'nam'", "has(…)", 27),
        ("context.s.x == 1", "`context.s` is text ('text'), so it has no `x`", "", 10),
        ("context.l[9] == 1", "no element 9: the list has 3", "", 10),
        ("context.n > 1", "`>` does not apply to null and a whole number", "context.x != null && …", 10),
        ("context.created > now", "`>` does not apply to text and a time", "`timestamp(…)`", 16),
        ("context.f + context.a > 2.0", "`+` does not apply to a decimal number and a whole number", "`double(…)`", 10),
        ("1 == 1.0", "`==` does not apply to a whole number and a decimal number", "`double(…)`", 2),
        ("context.a && true", "at `&&` is not true or false", "compare it", 10),
        ("!context.s", "at `!` is not true or false", "compare it", 0),
        ("context.a ? true : false", "before `?` is not true or false", "compare it", 10),
        ("'x' in context.s", "`in` needs a list or a mapping", "text.contains(part)", 4),
        ("context.a.exists(x, x > 1)", "nothing to go through", "a list or a mapping", 10),
        ("context.s.getHours() == 1", "`getHours` does not apply to text", "", 10),
        ("context.a / 0 == 1", "divide by zero", "", 10),
        ("context.a % 0 == 1", "modulus by zero", "", 10),
        ("timestamp(context.s) > now", "the text given to `timestamp` is not one", "2026-01-31T12:00:00Z", 0),
        ("duration('1d') > duration('1s')", "the text given to `duration`", "no days", None),
        ("context.s.matches('(')", "invalid regular expression", "", None),
        ("9223372036854775807 + context.a > 0", "integer overflow", "", None),
    ],
)  # fmt: skip
def test_a_mistake_is_explained_where_it_stands(
    source: str, message: str, hint: str, offset: int | None
) -> None:
    error = failure(source)
    assert message in error.message
    assert hint in error.hint
    assert (error.offset, error.source) == (offset, source)


def test_comparing_text_with_a_number_names_the_text() -> None:
    assert failure("context.nine >= 8").path == "context.nine"
    assert failure("8 < context.nine").path == "context.nine"
    assert failure("context.a + 1 > 1 && context.n > 8").path == ""


def test_an_error_points_into_the_file() -> None:
    error = failure("context.a and true", Location("m.yml", 7, 16, "    condition: context.a and true"))
    assert str(error).splitlines() == [
        "m.yml:7:26: `and` is not an operator in CEL",
        " 7 |     condition: context.a and true",
        "   |                          ^",
        "  help: write `&&`",
    ]


def test_a_condition_is_a_value_of_its_own_language() -> None:
    one = CelCondition("context.a == 1")
    assert one == CelCondition("context.a == 1", Location("f", 1, 1))
    assert one != Condition("context.a == 1")
    assert hash(one) != hash(Condition("context.a == 1"))
    assert repr(one) == "CelCondition('context.a == 1')"
    again = pickle.loads(pickle.dumps(one))
    assert type(again) is CelCondition
    assert again.test({"context": CONTEXT})
    with pytest.raises(AttributeError, match="immutable"):
        one.source = "x"


def test_a_condition_tells_which_paths_it_reads() -> None:
    condition = CelCondition(
        "context.l.exists(x, x > context['a b'].c) && has(context.d.k) && context.s.size() > 1"
    )
    assert condition.paths() == ("context.l", "context.a b.c", "context.d.k", "context.s")


def test_now_is_needed_only_by_those_who_ask_for_it() -> None:
    assert CelCondition("context.a == 1").test({"context": CONTEXT})
    with pytest.raises(ExpressionError, match="there is no `now` here"):
        CelCondition("now == now").test({"context": CONTEXT})


# -- in a program -----------------------------------------------------------------------


def _two(engine_condition: Condition) -> Branch:
    return Branch(arms=(Arm(engine_condition, "yes"), Arm(None, "end")))


def test_now_is_the_time_of_the_event() -> None:
    for source, target in (
        (f"now == timestamp({int(AT)})", "yes"),
        (f"now > timestamp({int(AT)})", "end"),
    ):
        made = program(node("work", _two(CelCondition(source))), final("yes"), final())
        assert [name for how, name, _ in started(made).path if how == "enter"] == ["work", target]


def test_the_language_is_part_of_a_stored_program() -> None:
    simple = program(node("work", _two(Condition("context.n == 1"))), final("yes"), final())
    cel = program(node("work", _two(CelCondition("context.n == 1"))), final("yes"), final())
    assert simple.digest != cel.digest
    branch = program_from_data(program_to_data(cel)).nodes["work"].ops[0]
    assert isinstance(branch, Branch)
    assert type(branch.arms[0].condition) is CelCondition
    assert branch.arms[0].condition == CelCondition("context.n == 1")
    assert program_to_data(program_from_data(program_to_data(cel))) == program_to_data(cel)


def test_a_condition_that_fails_is_routed_like_any_error() -> None:
    broken = node("work", _two(CelCondition("context.missing == 1")), on_error={"default": "end"})
    step = started(program(broken, final("yes"), final(), context={"n": 1}))
    assert step.snapshot.status == "done"
    context = step.snapshot.instances["0"].context if "0" in step.snapshot.instances else next(
        iter(step.snapshot.instances.values())
    ).context  # fmt: skip
    assert "`context` has no key 'missing'" in context["last_error"]


# -- in a file --------------------------------------------------------------------------

MACHINE = """\
spec: flatmachine
spec_version: "2.5.0"
data:
  expression_engine: cel
  context: {{score: 9, text: "{{{{ 9 }}}}"}}
  states:
    start:
      transitions:
        - condition: {condition}
          to: good
        - to: bad
    good: {{type: final}}
    bad: {{type: final}}
"""


def _machine(folder: Path, condition: str) -> Path:
    path = folder / "machine.yml"
    path.write_text(MACHINE.format(condition=condition))
    return path


def test_a_file_chooses_the_language(tmp_path: Path) -> None:
    made = lower(load_machine(_machine(tmp_path, "context.score >= 8 && !has(context.failed)")))
    assert [name for how, name, _ in started(made).path if how == "enter"] == ["start", "good"]


def test_syntax_is_checked_when_a_file_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_machine(_machine(tmp_path, "context.score >= 8 and true"))
    (problem,) = caught.value.problems
    assert (problem.code, problem.hint) == ("condition", "write `&&`")
    assert str(problem.location).endswith("machine.yml:9:41")


def test_a_text_made_by_a_template_is_blamed_on_the_template(tmp_path: Path) -> None:
    made = lower(load_machine(_machine(tmp_path, "context.text > 8")))
    failure = started(made).snapshot.failure
    assert failure is not None
    assert "`>` does not apply to text and a whole number" in failure.message
    assert "machine.yml:5:" in failure.detail
    assert "a template always gives text" in failure.detail


_WITHOUT = """
import sys
sys.modules["cel_expr_python"] = None
from flat.spec.load import load_machine
from flat.errors import SpecError
try:
    load_machine(sys.argv[1])
except SpecError as error:
    print(error)
"""


def test_a_missing_package_is_one_clear_error_at_load(tmp_path: Path) -> None:
    path = _machine(tmp_path, "context.score >= 8")
    child = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(path)], capture_output=True, text=True, check=True
    )
    lines = child.stdout.splitlines()
    assert lines[0].endswith(
        "machine.yml:4:22: error[missing-package]: conditions in CEL need the package cel-expr-python"
    )
    assert lines[-1] == "  help: pip install 'flat[cel]'"
    assert child.stdout.count("error[") == 1


def test_a_simple_machine_does_not_import_cel() -> None:
    code = "import sys, flat.core.condition as c; c.Condition('1').test({}); print('cel_expr_python' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"


# -- what the text tells ------------------------------------------------------------------


@given(st.text(max_size=60))
def test_tokens_cover_the_text(source: str) -> None:
    at = 0
    for token in tokens_of(source):
        assert source[token.offset : token.offset + len(token.text)] == token.text
        assert token.offset >= at
        at = token.offset + len(token.text)


def test_only_what_is_read_is_handed_over() -> None:
    assert read("context.a.b + context['c'] > x.context.d").keys == ("a", "c")
    assert not read("context.a && '/* context */' == context.b // context").whole
    assert read("context[context.a]").whole
    assert read("context.size() > 1").whole
    assert read("'a' in context").whole


@given(st.text(max_size=60), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5))  # fmt: skip
def test_no_text_raises_anything_but_an_expression_error(source: str, data: Any) -> None:
    try:
        assert CelCondition(source).test({"context": {"a": data}}, NOW) in (True, False)
    except ExpressionError as error:
        mistake = error
    else:
        return
    assert mistake.message


_PIECES = st.sampled_from(
    ["context", ".", "a", "[", "]", "(", ")", "{", "}", "==", "<", "&&", "||", "!", "in", "-", "+", "*", "/", "%", "'", '"',
     "1", "1.5", "null", "true", ",", " ", "\\", "?", ":", "size", "has", "all", "map", "x", "now", "\n", "é", "and"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=25))
def test_no_jumble_of_tokens_raises_anything_but_an_expression_error(pieces: list[str]) -> None:
    try:
        assert CelCondition("".join(pieces)).test({"context": {"a": [1, {"x": "y"}]}}, NOW) in (True, False)
    except ExpressionError as error:
        mistake = error
    else:
        return
    assert mistake.offset is None or 0 <= mistake.offset <= len("".join(pieces))
