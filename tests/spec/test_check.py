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
      start: {action: x, on_error: {default: a, ValueError: b}, transitions: [{to: done}]}
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
