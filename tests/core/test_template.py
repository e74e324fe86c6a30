"""Templates: what each kind of text gives, and what an error says."""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from flat.core.limits import Limits
from flat.core.template import CompiledMapping, Template, compile_text, compile_value
from flat.errors import ExpressionError, Location

CONTEXT: dict[str, Any] = {
    "l": [1, "a"], "n": None, "b": True, "one": 1, "js": "[1,2]", "name": "Ann", "d": {"a": 1},
    "u": "é", "words": ["b", "a"], "items": "mine", "f": 2.5,
    "people": [{"name": "Ann", "age": 30}, {"name": "Bo", "age": 20}],
}  # fmt: skip
SCOPE: dict[str, Any] = {"context": CONTEXT, "input": {"items": [1, 2], "v": 7}, "output": {"content": "hi"}}


def render(source: str, scope: dict[str, Any] | None = None, **options: Any) -> Any:
    return Template(source, **options).render(SCOPE if scope is None else scope)


def failure(source: str, location: Location | None = None, **options: Any) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        Template(source, location, **options).render(SCOPE)
    return caught.value


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("context.l", [1, "a"]),
        ("  context.l ", [1, "a"]),
        ("{{ context.l }}", '[1, "a"]'),
        ("{{ context.n }}", "None"),
        ("{{ context.b }}", "True"),
        ("{{ context.one + 1 }}", "2"),
        ("{{ context.js | fromjson }}", "[1, 2]"),
        ("context.missing.x", None),
        ("context.one.x", None),
        ("nothing", "nothing"),
        ("context['l']", "context['l']"),
        ("output.items.0", "output.items.0"),
        ("$HOME", "$HOME"),
        ("item", "item"),
        ("doc.id", "doc.id"),
        ("  plain text\n", "  plain text\n"),
        ("{# a comment #}", "{# a comment #}"),
        ("contexts.l", "contexts.l"),
        ("context.l\n", [1, "a"]),
        ("context", CONTEXT),
        ("{{ context.u }} {{ [context.u] }}", 'é ["\\u00e9"]'),
        ("{{ (1, 2) }}", "(1, 2)"),
        ("{{ context.d }}", '{"a": 1}'),
        ("{{ context.d | tojson }}", '{"a": 1}'),
        ("{{ '<' | tojson }}", '"\\u003c"'),
        ("{{ context.name }}\n", "Ann"),
        ("{{ context.name }}\n\n", "Ann\n"),
        (" {{ context.name }} ", " Ann "),
        ("{{ 'a' if false }}", ""),
    ],
)
def test_each_kind_of_text_gives_its_value(source: str, result: Any) -> None:
    assert render(source) == result


def test_a_bare_path_gives_the_very_same_object() -> None:
    assert render("context.l") is CONTEXT["l"]


def test_a_bare_path_may_begin_with_a_root_that_the_template_was_given() -> None:
    assert Template("item.id", roots=("item",)).render({"item": {"id": 3}}) == 3


def test_keys_win_over_methods() -> None:
    assert render("{{ input.items }}") == "[1, 2]"
    assert (
        render("{{ context.items }}|{{ context['items'] }}|{{ context.d.items() }}") == 'mine|mine|[["a", 1]]'
    )


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("{{ context.words | join(', ') | upper }}", "B, A"),
        ("{{ context.words | sort | first }}", "a"),
        ("{{ context.people | map(attribute='name') | list }}", '["Ann", "Bo"]'),
        ("{{ context.people | map(attribute='name') }}", '["Ann", "Bo"]'),
        ("{{ context.people | selectattr('age', 'gt', 25) | map(attribute='name') | join }}", "Ann"),
        ("{{ context.people | sum(attribute='age') }}", "50"),
        (
            "{% for g in context.people | groupby('age') %}{{ g.grouper }}{{ g.list | length }} {% endfor %}",
            "201 301 ",
        ),
        ("{{ context.name[0] }}{{ context.name[1:] }}{{ context.name[-1] }}", "Annn"),
        (
            "{{ context.name.upper() }} {{ context.name.startswith('A') }} {{ 'a,b'.split(',') }}",
            'ANN True ["a", "b"]',
        ),
        (
            "{{ ','.join(context.words) }} {{ context.d.get('z', 4) }} {{ context.words.index('a') }}",
            "b,a 4 1",
        ),
        ("{{ context.name ~ 1 ~ none }}", "Ann1None"),
        ("{{ 'a' * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ 1 / 2 }}", "aaa33320.5"),
        (
            "{{ '%05.2f' | format(context.f) }} {{ '%s-%s' % ('a', 1) }} {{ '%(x)s' | format(x=1) }}",
            "02.50 a-1 1",
        ),
        (
            "{% for k, v in context.d.items() %}{{ loop.index }}{{ k }}{{ v }}{{ loop.last }}{% endfor %}",
            "1a1True",
        ),
        ("{% for x in [1, 2, 3] if x > 1 %}{{ x }}{% else %}none{% endfor %}", "23"),
        ("{% for x in [] %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{% macro m(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ m(1) }}{{ m(3, y=4) }}", "<12><34>"),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}", "[in]"),
        ("{% set x = context.one + 1 %}{% set y %}b{{ x }}{% endset %}{{ y }}", "b2"),
        ("{% filter upper %}a{{ context.name }}{% endfilter %}", "AANN"),
        ("{% with a = 1 %}{{ a }}{% endwith %}{% if context.b and not context.n %}y{% endif %}", "1y"),
        ("{{ context.zz | default('d') }} {{ context.zz is defined }} {{ 3 is odd }}", "d False True"),
        ("{{ range(3) | list }} {{ dict(a=1) }} {{ loop | default('no') }}", '[0, 1, 2] {"a": 1} no'),
        (
            "{% for t in [[1, [2]], [3]] recursive %}{{ loop(t) if t is not number else t }}{% endfor %}",
            "123",
        ),
        ("{{ context.words | batch(1) | list }}{{ 'abc' | truncate(2, true, '', 0) }}", '[["b"], ["a"]]ab'),
        ("{{ '<a>' | e }} {{ '<a>' | safe }} {{ 'a\nb' | indent(2) }}", "&lt;a&gt; <a> a\n  b"),
        ("{{ 'a-b' | replace('-', '+') }} {{ 'x' | center(3) }} {{ [3, 1] | max }}", "a+b  x  3"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("{%- if true -%} a {%- endif %}", "a"),
        ("{{ loop.cycle('a') if false else 'b' }}", "b"),
        ("{% for x in [1, 2] %}{{ loop.cycle('a', 'b') }}{% endfor %}", "ab"),
        ("{{ 'b' in context.words }} {{ 1 < 2 < 3 }} {{ 'a' == 'a' }}", "True True True"),
    ],
)
def test_the_useful_part_of_jinja_works(source: str, result: str) -> None:
    assert render(source) == result


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ context.l }}", [1, "a"]),
        (" {{ context.one + 1 }} ", 2),
        ("{{ context.one }}\n", 1),
        ("{{ range(3) }}", [0, 1, 2]),
        ("{{ context.people | map(attribute='age') }}", [30, 20]),
        ("{{ context.zz | default(none) }}", None),
        ("x{{ context.one }}", "x1"),
        ("{{ context.one }}{{ context.one }}", "11"),
        ("{% if true %}{{ 1 }}{% endif %}", "1"),
    ],
)
def test_native_keeps_the_type_of_a_whole_expression_only(source: str, value: Any) -> None:
    assert render(source, native=True) == value


def test_read_only_mappings_are_written_as_json() -> None:
    scope = {"context": {"m": MappingProxyType({"a": MappingProxyType({"b": 1})})}}
    assert Template("{{ context.m }}").render(scope) == '{"a": {"b": 1}}'
    assert Template("{{ context.m | tojson }} {{ context.m.a.b }}").render(scope) == '{"a": {"b": 1}} 1'


def test_a_rendered_value_is_never_rendered_again() -> None:
    scope = {"context": {"x": "{{ 7 * 7 }}{% raw %}"}}
    for source in ("context.x", "{{ context.x }}", "{{ context.x ~ '' }}", "{{ [context.x] | join }}"):
        assert Template(source).render(scope) == "{{ 7 * 7 }}{% raw %}"


@pytest.mark.parametrize(
    ("source", "message", "hint", "offset"),
    [
        ("Dear {{ context.nme }}", "`context.nme` is not defined", 'did you mean "name"?', 8),
        ("{{ context.nme | upper }}", "`context.nme` is not defined", 'did you mean "name"?', 3),
        ("{{ contxt.name }}", "`contxt` is not defined", 'did you mean "context"?', 3),
        ("{{ context.d.q.r }}", "`context.d.q` is not defined", "", 3),
        ("{{ context.name.first }}", "`context.name` is text ('Ann')", "", 3),
        ("{{ context['nme'] }}", "`context.nme` is not defined", 'did you mean "name"?', 3),
        ("{{ context.l[5] }}", "there is no element 5", "", None),
        (
            "{% for p in context.people %}{{ p.nam }}{% endfor %}",
            "`p.nam` is not defined",
            'did you mean "name"?',
            32,
        ),
        ("{{ 'x' | uper }}", "there is no filter `uper`", 'did you mean "upper"?', 9),
        ("{{ 1 is od }}", "there is no test `od`", 'did you mean "odd"?', 8),
        ("{{ context.name.uper() }}", "text has no method `uper`", 'did you mean "upper"?', None),
        ("{{ [context.zz] }}", "`context.zz` is not defined", "known", 4),
        ("{{ 1 + }}", "not a template", "", None),
        ("a\n {{ 'b' + 1 }}", "`+` does not apply", "", 3),
        ("{{ 1 // 0 }}", "division by zero", "", None),
        ("{{ 'no' | fromjson }}", "not JSON", "", None),
        ("{% include 'x' %}", "`include` is not available", "", 3),
        ("{{ range }}", "a function has no value", "call it", None),
        ("{{ context.name() }}", "a mapping has no method `name`", "", None),
        ("{{ [1] | sum(attribute='x') }}", "`x` is not defined", "", None),
    ],
)
def test_an_error_says_what_and_where(source: str, message: str, hint: str, offset: int | None) -> None:
    error = failure(source)
    assert message in error.message
    assert hint in error.hint
    assert error.offset == offset


def test_an_error_points_into_the_file() -> None:
    error = failure("Dear {{ context.nme }}", Location("m.yml", 4, 11, '  prompt: "Dear {{ context.nme }}"'))
    assert str(error).splitlines()[:3] == [
        "m.yml:4:20: `context.nme` is not defined",
        ' 4 |   prompt: "Dear {{ context.nme }}"',
        "   |                    ^^^^^^^^^^^",
    ]


def test_an_error_in_text_of_several_lines_points_at_its_start() -> None:
    error = failure("a\n{{ context.nme }}", Location("m.yml", 4, 10, "  prompt: |"))
    assert error.location == Location("m.yml", 4, 10, "  prompt: |")


def test_checking_finds_names_that_nothing_defines() -> None:
    Template("{% set a = 1 %}{{ a }}{{ context.x }}{{ range(2) }}").check({"context"})
    for source in ("{{ usr }} {{ context.x }}", "{{ usr + 1 }}"):
        with pytest.raises(ExpressionError) as caught:
            Template(source).check(("context", "user"))
        assert caught.value.hint == 'did you mean "user"?'
        assert caught.value.offset == 3


def test_lenient_templates_treat_missing_as_nothing() -> None:
    for source in (
        "a{{ context.zz }}b",
        "a{{ zz }}b",
        "a{{ context.zz ~ '' }}b",
        "a{% if context.zz %}x{% endif %}b",
    ):
        assert render(source, lenient=True) == "ab"
    for source in ("{{ context.zz.y }}", "{{ (context.zz).y }}", "{{ zz.y }}"):
        with pytest.raises(ExpressionError, match="not defined"):
            render(source, lenient=True)


def test_asking_whether_something_is_there_is_no_error() -> None:
    assert render("{{ context.zz or 'none' }}{% if context.zz %}a{% else %}b{% endif %}") == "noneb"


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("context.name", "context.name"),
        ("a\n", "a"),
        ("a\n\n", "a\n"),
        ("{{ context.name }}\n", "Ann"),
        ("{# gone #}x", "x"),
        ("{{ context.zz }}", ""),
    ],
)
def test_prompt_text_has_no_bare_paths(source: str, result: str) -> None:
    assert compile_text(source, lenient=True).render(SCOPE) == result


def test_a_template_is_an_immutable_value() -> None:
    one, same = Template("{{ context.one + 1 }}"), Template("{{ context.one + 1 }}", Location("f", 1, 1))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Template("{{ context.one + 1 }}", native=True)
    assert one != "{{ context.one + 1 }}"
    assert one.render(SCOPE) == "2"
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    assert copy.render(SCOPE) == "2"
    assert repr(one) == "Template('{{ context.one + 1 }}')"
    with pytest.raises(AttributeError, match="immutable"):
        one.source = "x"


def test_mappings_render_as_deep_as_they_should() -> None:
    source = {
        "a": "{{ input.v }}",
        "y": ["{{ input.v }}", {"z": "{{ input.v }}"}],
        "o": {"p": "input.v", "q": 1},
    }
    expected = {"a": "7", "y": ["7", {"z": "{{ input.v }}"}], "o": {"p": 7, "q": 1}}
    assert compile_value(source).render(SCOPE) == expected
    compiled = compile_value(source)
    assert compiled.render(SCOPE) == expected
    assert compiled == compile_value(source)
    assert pickle.loads(pickle.dumps(compiled)).render(SCOPE) == expected


def test_keys_other_types_and_tuples_are_left_alone() -> None:
    source = {"{{ input.v }}": 1, "t": ("input.v",), "n": None}
    assert compile_value(source).render(SCOPE) == source
    assert compile_value(5).render(SCOPE) == 5
    assert compile_value("input.v").render(SCOPE) == 7


def test_rendering_shares_no_container_with_the_file() -> None:
    source = {"a": [], "b": {"c": [[1]]}, "d": [{"e": []}]}
    compiled = compile_value(source)
    compiled.render({})["b"]["c"][0].append(2)
    compiled.render({})["a"].append(2)
    compiled.render({})["d"][0]["e"].append(2)
    assert compiled.render({}) == {"a": [], "b": {"c": [[1]]}, "d": [{"e": []}]}


def test_foreach_items_reach_children_as_text() -> None:
    compiled = compile_value({"v": "{{ item }}"})
    assert [compiled.render({"item": item})["v"] for item in (1, {"q": 2})] == ["1", '{"q": 2}']


def test_a_compiled_mapping_knows_the_places_of_its_templates() -> None:
    compiled = compile_value(
        {"a": "x", "b": {"c": ["{{ context.zz }}"]}}, lambda *keys: Location("m.yml", len(keys), 1)
    )
    assert isinstance(compiled, CompiledMapping)
    assert list(compiled.places()) == [(("b", "c", 0), Location("m.yml", 3, 1))]
    with pytest.raises(ExpressionError, match=r"m\.yml:3:4"):
        compiled.render(SCOPE)
    with pytest.raises(ExpressionError, match="not defined"):
        compiled.check(("input",))


def test_limits_can_be_set() -> None:
    small = Limits(output=10)
    assert Template("{{ context.name }}", limits=small).render(SCOPE) == "Ann"
    for source in (
        "{{ context.people }}",
        "{{ context.name }} {{ context.name }} {{ context.name }}",
        "{{ 'a' * 11 }}",
    ):
        with pytest.raises(ExpressionError):
            Template(source, limits=small).render(SCOPE)


def test_templates_of_paths_alone_do_not_import_jinja() -> None:
    code = (
        "import sys; from flat.core.template import Template, compile_value; from flat.core.condition import Condition\n"
        "s = {'context': {'a': 1, 'l': [1]}}\n"
        "assert Template('x {{ context.a }} {{ context.l }}').render(s) == 'x 1 [1]'\n"
        "Template('{{ context.a }}').check(('context',)); assert Condition('context.a == 1').test(s)\n"
        "assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(_VALUES, st.text(st.characters(exclude_characters="{}\r"), max_size=10))
def test_plain_templates_render_as_the_same_text_in_jinja(value: Any, text: str) -> None:
    source = f"{text}{{{{ context.x }}}}{text}"
    plain = Template(source).render({"context": {"x": value}})
    assert plain == Template(source + "{# #}" if not source.endswith("\n") else source).render(
        {"context": {"x": value}}
    )
    if not isinstance(value, list | dict):
        assert plain == Environment().from_string(source).render(context={"x": value})


@given(st.text(max_size=60), _VALUES)
def test_no_text_raises_anything_but_an_expression_error(text: str, value: Any) -> None:
    for source in (text, f"{{{{ {text} }}}}", f"{{% {text} %}}", f"{{{{ context.x {text} }}}}"):
        with suppress(ExpressionError):
            Template(source).render({"context": {"x": value}})
