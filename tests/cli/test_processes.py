"""Processes that are interrupted, killed, piped or left alone: what they say, and what is resumable after."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

SLOW = ("action: count", "action: slow")
PARENT = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: parent
  machines: {child: child.yml}
  states:
    ask: {type: initial, machine: child, output_to_context: {n: "{{ output.n }}"}, transitions: [{to: done}]}
    done: {type: final, output: {n: "{{ context.n }}"}}
"""


def run_until(project: Project, line: str, *args: str) -> subprocess.Popen[str]:
    """A run whose output has just said this."""
    process = project.start("run", ".", "--id", "x", *args)
    assert process.stdout is not None
    for said in process.stdout:
        if line in said:
            return process
    raise AssertionError(f"it never said {line!r}")


def resumed_output(project: Project) -> object:
    result = project.process("resume", "x", "-q")
    assert result.code == 0, result
    return json.loads(result.out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_can(project: Project, number: signal.Signals) -> None:
    project.write(machine=project.LOOP.replace(*SLOW).replace("to: 3}", "to: 40}"))
    process = run_until(project, "    5  count")
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "interrupted; continue with: flat resume x\n"
    assert json.loads(project.flat("runs", "list", "--json").out)[0]["status"] == "interrupted"
    assert resumed_output(project) == {"n": "40"}


def test_an_interrupted_run_that_was_kept_nowhere_says_so(project: Project) -> None:
    project.write(machine=project.LOOP.replace(*SLOW).replace("to: 3}", "to: 400}"))
    process = run_until(project, "    3  count", "--store", "memory:")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "nothing was kept" in err


def test_a_killed_run_is_resumed_at_once_and_says_what_was_in_flight(project: Project) -> None:
    project.write(machine=project.LOOP.replace(*SLOW).replace("to: 3}", "to: 40}"))
    process = run_until(project, "    5  count")
    process.kill()
    process.communicate(timeout=20)
    result = project.process("resume", "x")
    assert result.code == 0
    assert "action slow was in flight when the last run ended; done again" in result.out
    assert '"n": "40"' in result.out


def test_what_is_in_doubt_can_wait_for_a_decision_to_do_it_again(project: Project) -> None:
    project.write(machine=project.one_action("die_once", extra="      in_doubt: ask\n"))
    assert project.process("run", ".", "--id", "x").code == 9
    result = project.process("resume", "x")
    assert result.code == 11
    assert "action die_once may or may not have happened" in result.err
    assert "flat resume x --retry-in-doubt" in result.err
    assert json.loads(project.process("resume", "x", "--retry-in-doubt", "-q").out) == {"n": "7"}
    assert Path("ledger").read_text() == "xx"


def test_what_is_in_doubt_can_be_taken_as_done(project: Project) -> None:
    project.write(machine=project.one_action("die_once", extra="      in_doubt: ask\n"))
    project.process("run", ".", "--id", "x")
    assert project.process("resume", "x", "--mark-done", "[").code == 2
    result = project.process("resume", "x", "--mark-done", '{"n": 5}', "-q")
    assert json.loads(result.out) == {"n": "5"}
    assert Path("ledger").read_text() == "x"


def test_a_child_that_is_in_doubt_is_named_with_how_to_decide_about_it(project: Project) -> None:
    child = project.one_action("die_once", extra="      in_doubt: ask\n")
    project.write(machine=PARENT)
    (project.folder / "child.yml").write_text(child)
    assert project.process("run", ".", "--id", "x").code == 9
    result = project.process("resume", "x")
    assert result.code == 4
    name = result.err.split()[1].rstrip(":")
    assert "action die_once may or may not have happened" in result.err
    assert f"flat resume {name} --retry-in-doubt" in result.err
    assert "then: flat resume x" in result.err
    decided = project.process("resume", name, "--retry-in-doubt", "-q")
    assert decided.code == 0, decided
    assert json.loads(project.process("resume", "x", "-q").out) == {"n": "7"}


def test_a_run_that_another_process_drives_is_not_resumed(project: Project) -> None:
    project.write(machine=project.LOOP.replace(*SLOW).replace("to: 3}", "to: 400}"))
    process = run_until(project, "    3  count")
    try:
        result = project.flat("resume", "x")
        assert result.code == 8
        assert "is being driven by" in result.err
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_nothing_but_plain_text_goes_into_a_pipe(project: Project) -> None:
    project.environ["TERM"] = "xterm-256color"  # type: ignore[index]
    result = project.process("run", ".")
    assert "\x1b" not in result.out + result.err
    assert result.code == 0


def test_a_run_goes_on_when_the_reader_of_its_output_has_gone(project: Project) -> None:
    project.write(machine=project.LOOP.replace(*SLOW).replace("to: 3}", "to: 10}"))
    process = run_until(project, "    2  count")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(20) == 0
    assert json.loads(project.flat("runs", "show", "x", "--json").out)["output"] == {"n": "10"}


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_gets_a_live_view_whose_last_frame_stays(project: Project) -> None:
    primary, secondary = pty.openpty()
    project.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="30", NO_COLOR="1")  # type: ignore[attr-defined]
    process = project.start("run", ".", stdout=secondary, stderr=secondary, text=False)
    os.close(secondary)
    shown = b""
    try:
        while piece := os.read(primary, 65536):
            shown += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    finally:
        os.close(primary)
    assert process.wait(20) == 0
    text = shown.decode()
    assert "\x1b[31m" not in text
    assert "\x1b[32m" not in text
    last = text[text.rindex("counter") :]
    assert "done" in last
    assert "action count" in last
    assert last.rstrip().endswith("}")


def test_a_model_that_cannot_be_reached_fails_the_run_with_one_message(project: Project) -> None:
    project.write(machine=project.one_call(settings=', base_url: "http://127.0.0.1:9/v1"'))
    result = project.process("run", ".")
    assert result.code == 1
    assert 'in state "ask"' in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("body", ["not JSON at all", "[1, 2]", ""])
def test_a_model_that_answers_nonsense_fails_the_run_with_one_message(project: Project, body: str) -> None:
    project.write(machine=project.one_call(), toml=project.TOML + '[model]\nscript = "script.yml"\n')
    (project.folder / "script.yml").write_text(json.dumps({"replies": [{"body": body}]}))
    result = project.process("run", ".")
    assert result.code == 1
    assert 'in state "ask"' in result.err
    assert "Traceback" not in result.err


def test_a_model_call_in_flight_is_asked_again(project: Project) -> None:
    project.write(machine=project.one_call(), toml=project.TOML + '[model]\nscript = "script.yml"\n')
    (project.folder / "script.yml").write_text("replies: [{text: hello, delay: 0.2}]\nrepeat: true\n")
    process = run_until(project, "   1  ask")
    process.kill()
    process.communicate(timeout=20)
    result = project.process("resume", "x")
    assert "agent helper was in flight when the last run ended; asked again" in result.out
    assert '"said": "hello"' in result.out
    assert (
        "model: scripted from script.yml, not a real model; set OPENAI_API_KEY to use the real one"
        in result.out
    )
