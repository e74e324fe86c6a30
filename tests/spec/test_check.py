"""What is known about a machine before it runs."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from flat.errors import Problem, SpecError
from flat.spec import load_machine


def problems(tmp_path: Path, body: str, *, compat: bool = False) -> list[Problem]:
    text = "spec: flatmachine\ndata:\n" + textwrap.indent(textwrap.dedent(body), "  ")
    (tmp_path / "m.yml").write_text(text, encoding="utf-8")
    try:
        return load_machine(tmp_path / "m.yml", compat=compat).problems
    except SpecError as error:
        return list(error.problems)


def found(tmp_path: Path, body: str, *, compat: bool = False) -> list[tuple[str, str]]:
    return [(problem.code, problem.severity) for problem in problems(tmp_path, body, compat=compat)]


SILENT = """\
contxt: {a: 1}
context: {n: 0, n: 1, 1: x}
states:
  start:
    agnt: x
    agent: nobody
    mode: al
    input: {a: "{{ nothing }}"}
    transitions:
      - condition: context.n == 1
      - condition: context.n == 2
        to:
      - condition: context.n == 3
        to: ""
      - condition: context.n == 4
        too: start
      - to: nowhere
    on_error: nowhere
  lost:
    action: x
"""


def test_what_upstream_passes_over_is_an_error(tmp_path: Path) -> None:
    errors = {code for code, severity in found(tmp_path, SILENT) if severity == "error"}
    assert errors == {
        "unknown-key", "duplicate-key", "key", "unknown-agent", "value", "undefined-name", "missing",
        "unknown-state", "dead-end",
    }  # fmt: skip


@pytest.mark.parametrize("in_file", [True, False])
def test_under_compat_it_is_a_warning_and_the_machine_loads(tmp_path: Path, in_file: bool) -> None:
    body = SILENT + "settings: {compat: 4.2}\n" if in_file else SILENT
    result = found(tmp_path, body, compat=not in_file)
    assert {severity for _, severity in result} == {"warning"}
    source = load_machine(tmp_path / "m.yml", compat=not in_file)
    start = source.machine.data.states["start"]
    assert source.compat
    assert [t.to for t in start.transitions] == ["nowhere"]
    assert start.mode == "settled"


def test_syntax_errors_in_templates_are_errors_under_compat_too(tmp_path: Path) -> None:
    body = "context: {a: '{{ input.x'}\nstates: {done: {type: final}}\n"
    assert found(tmp_path, body, compat=True) == [("template", "error")]


def test_states_reached_only_after_an_error_are_reachable(tmp_path: Path) -> None:
    body = """\
    states:
      start: {action: x, hooks: h, on_error: {default: a, ValueError: b}, transitions: [{to: done}]}
      a: {type: final}
      b: {type: final}
      done: {type: final}
    """
    assert found(tmp_path, body) == []


def test_a_state_named_start_is_where_a_machine_begins(tmp_path: Path) -> None:
    body = "states:\n  done: {type: final}\n  start: {transitions: [{to: done}]}\n"
    assert found(tmp_path, body) == []


def test_the_items_of_foreach_are_known_in_its_templates(tmp_path: Path) -> None:
    body = """\
    machines: {c: {spec: flatmachine, data: {states: {done: {type: final}}}}}
    context: {docs: []}
    states:
      start:
        foreach: "{{ context.docs }}"
        as: doc
        key: "{{ doc.id }}"
        machine: c
        input: {text: "{{ doc.text }}"}
        transitions: [{to: done}]
      done: {type: final}
    """
    assert not found(tmp_path, body)


def test_an_empty_tool_loop_is_a_plain_call(tmp_path: Path) -> None:
    body = """\
    agents: {a: {spec: flatagent, data: {user: x}}}
    states: {done: {agent: a, tool_loop: {}, type: final}}
    """
    assert found(tmp_path, body) == []


def test_open_settings_are_free_but_near_misses_are_warned_of(tmp_path: Path) -> None:
    body = "settings: {my_own: 1, max_setps: 3}\nstates: {done: {type: final}}\n"
    assert found(tmp_path, body) == [("unknown-setting", "warning")]


def test_a_broken_machine_of_a_thousand_states_is_answered_in_time(tmp_path: Path) -> None:
    lines = "".join(f"  s{n}:\n    transitions: [{{to: x{n}}}]\n" for n in range(1000))
    assert len(found(tmp_path, f"states:\n{lines}")) == 1000


def test_input_that_the_context_does_not_declare_is_warned_of(tmp_path: Path) -> None:
    body = """\
    context: {user: "{{ input.user }}"}
    agents: {a: {spec: flatagent, data: {user: x}}}
    states:
      start: {agent: a, input: {x: "{{ input.usr }}", y: input.other}, transitions: [{to: done}]}
      done: {type: final}
    """
    hints = [problem.hint for problem in problems(tmp_path, body)]
    assert hints == ['did you mean "user"?', 'add other: "{{ input.other }}" to data.context']


def test_a_template_deep_inside_a_list_is_warned_of_because_it_stays_as_it_is(tmp_path: Path) -> None:
    body = """
        context:
          papers:
            - {name: a, text: "{{ input.a }}"}
            - "{{ input.b }}"
            - {name: plain}
        states: {start: {type: final}}
    """
    (problem,) = problems(tmp_path, body)
    assert (problem.code, problem.severity) == ("unrendered", "warning")
    assert problem.location is not None
    assert problem.location.line == 5 + 1


def test_what_an_action_writes_is_not_taken_for_a_name_of_the_engine(tmp_path: Path) -> None:
    body = """\
    context: {workers: 1}
    hooks: counting
    states:
      start:
        action: count
        transitions: [{condition: context.%s > 0, to: done}]
      done: {type: final}
    """
    assert found(tmp_path, body % "stale_count") == []
    assert found(tmp_path, body % "worker") == [("undeclared", "warning")]
    (warning,) = problems(tmp_path, body % "_tool_call_count")
    assert warning.hint == 'did you mean "_tool_calls_count"?'


def machine(body: str) -> str:
    return f"""\
    context: {{l: input.l}}
    machines:
      c: {{spec: flatmachine, data: {{states: {{d: {{type: final}}}}}}}}
      e: {{spec: flatmachine, data: {{states: {{d: {{type: final}}}}}}}}
    states:
      start: {{{body}, transitions: [{{to: done}}]}}
      done: {{type: final, output: {{l: context.l}}}}
    """


@pytest.mark.parametrize(
    ("state", "code", "severity", "words"),
    [
        ('wait_for: " "', "missing", "error", "wait_for is empty"),
        ('action: go, hooks: h, on_error: ""', "missing", "error", "on_error is empty"),
        ('action: go, hooks: h, on_error: {TypeError: ""}', "missing", "error", "on_error is empty"),
        ('launch: ""', "unknown-machine", "error", 'no machine ""'),
        ('foreach: context.l, machine: c, as: ""', "item-name", "error", 'not ""'),
        ("action: go", "unheard-action", "warning", 'nothing runs the action "go"'),
        ("foreach: context.l, machine: [c, e]", "unused", "warning", "runs the first machine only"),
        ("machine: [c, e, {name: c}]", "unused", "warning", "kept by name, so it runs once"),
        ("foreach: context.l, machine: c, as: my row", "item-name", "error", 'not "my row"'),
        ("foreach: context.l, machine: c, as: not", "item-name", "error", 'not "not"'),
        (
            "foreach: context.l, machine: c, key: item.id",
            "plain-text",
            "warning",
            "item.id is plain text here",
        ),
        ("foreach: context.l, machine: c, key: same", "plain-text", "warning", "all items have the same key"),
        ("foreach: context.l, machine: c, as: doc, input: {x: doc}", "plain-text", "warning", "doc is plain"),
        ("machine: c, input: {x: contxt.l}", "plain-text", "warning", "contxt.l is plain text here"),
        ("machine: c, input: {x: \"context['l']\"}", "plain-text", "warning", "['l'] is plain text here"),
        ("machine: c, input: {x: context.l.0}", "plain-text", "warning", "context.l.0 is plain text here"),
        ("machine: c, input: {x: output.l}", "plain-text", "warning", "output.l is always null"),
        (
            'machine: [{name: c, input: {x: "{{ nope }}"}}]',
            "undefined-name",
            "error",
            "`nope` is not defined",
        ),
    ],
)
def test_what_does_nothing_or_something_else_than_it_looks_like_is_told(
    tmp_path: Path, state: str, code: str, severity: str, words: str
) -> None:
    (problem,) = problems(tmp_path, machine(state))
    assert (problem.code, problem.severity) == (code, severity)
    assert words in problem.message
    assert problem.location is not None
    assert problem.hint


@pytest.mark.parametrize(
    "state",
    [
        "action: go, hooks: h",
        "foreach: context.l, machine: c, as: doc, input: {file: document.md, kind: text, x: content.md}",
        "machine: c, input: {a: example.com, b: out.put, c: inputs.txt}",
    ],
)
def test_texts_that_are_meant_as_they_are_raise_no_doubts(tmp_path: Path, state: str) -> None:
    assert found(tmp_path, machine(state)) == []


def test_with_native_types_the_name_of_an_item_begins_a_path(tmp_path: Path) -> None:
    body = machine("foreach: context.l, machine: c, as: doc, key: doc.id, input: {x: doc.id, y: doc}")
    assert found(tmp_path, textwrap.dedent(body) + "settings: {native_types: true}\n") == []


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.5.0", None),
        ("0.7.7", None),
        ("4.2", None),
        ("4.2.1", None),
        ("4.3.0", "newer"),
        ("banana", "no version"),
    ],
)
def test_a_version_that_no_file_has_had_is_warned_of(tmp_path: Path, version: str, said: str | None) -> None:
    (tmp_path / "m.yml").write_text(
        f"spec: flatmachine\nspec_version: {version}\ndata: {{states: {{done: {{type: final}}}}}}\n",
        encoding="utf-8",
    )
    told = [problem.message for problem in load_machine(tmp_path / "m.yml").problems]
    assert [said in one for one in told if said] == ([True] if said else [])
    assert len(told) == (said is not None)
