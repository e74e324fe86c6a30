"""`flat run` and `flat resume`: outcomes, exit codes, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

HEAD = 'spec: flatmachine\nspec_version: "4.2.1"\ndata:\n  name: small\n  context: {n: 1}\n  states:\n'
LOOPING = HEAD + "    again: {transitions: [{to: again}]}\n  settings: {max_steps: 3}\n"
WAITING = HEAD + "    ask: {wait_for: answers, transitions: [{to: done}]}\n    done: {type: final}\n"
STUCK = (
    HEAD
    + '    ask:\n      transitions:\n        - {condition: "context.n == 2", to: done}\n    done: {type: final}\n'
)
FAILING = STUCK


def test_a_run_that_is_done_prints_its_output_and_ends_with_0(project: Project) -> None:
    result = project.flat("run", ".")
    assert result.code == 0
    assert result.out.endswith('{\n  "n": "3"\n}\n')
    assert "done: 4 steps" in result.out
    assert result.err == ""


def test_quiet_prints_nothing_but_the_output(project: Project) -> None:
    assert json.loads(project.flat("run", ".", "-q").out) == {"n": "3"}


def test_json_is_one_object_per_line_and_the_result_is_the_last(project: Project) -> None:
    result = project.flat("run", ".", "--json", "--id", "x")
    events = result.json_lines()
    assert [e["event"] for e in events[:3]] == ["loading", "started", "enter"]
    last = events[-1]
    assert last["event"] == "result"
    assert (last["status"], last["output"], last["execution_id"], last["steps"]) == (
        "done",
        {"n": "3"},
        "x",
        4,
    )
    assert last["spent"]["calls"] == 0


def test_what_hooks_print_does_not_get_into_the_json(project: Project) -> None:
    project.write(machine=project.one_action("shout"))
    result = project.flat("run", ".", "--json")
    assert result.json_lines()[-1]["status"] == "done"
    assert "printed by a hook" in result.err


def test_a_run_that_fails_ends_with_1_and_one_message(project: Project) -> None:
    project.write(machine=project.one_action("fail"))
    result = project.flat("run", ".", "-q")
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith(
        'error: ValueError in state "act": no good\nsee what happened with: flat runs show '
    )
    assert "Traceback" not in result.err


def test_verbose_shows_the_traceback_of_the_users_code(project: Project) -> None:
    project.write(machine=project.one_action("fail"))
    assert "hooks.py" in project.flat("run", ".", "-v").err


def test_a_limit_ends_with_6_and_more_steps_go_on(project: Project) -> None:
    result = project.flat("run", ".", "--id", "x", "--max-steps", "2")
    assert result.code == 6
    assert "max_steps (2) reached; continue with: flat resume x --more-steps" in result.err
    assert project.flat("resume", "x", "--more-steps", "1").code == 6
    assert project.flat("resume", "x", "--more-steps", "10").code == 0


def test_a_wait_ends_with_4_and_a_signal_lets_it_go_on(project: Project) -> None:
    project.write(machine=project.WAIT)
    result = project.flat("run", ".", "-i", "task=7", "--id", "x")
    assert result.code == 4
    assert 'waiting for a signal on "approval/7"' in result.err
    assert "approval/7" in project.flat("runs", "list", "--status", "waiting").out
    assert project.flat("resume", "x").code == 4
    sent = project.flat("signal", "approval/7", '"yes"')
    assert "flat resume x" in sent.out
    assert json.loads(project.flat("resume", "x", "-q").out) == {"answer": "yes"}


def test_a_state_that_takes_too_long_ends_with_7(project: Project) -> None:
    hooks = "import anyio\nfrom flat import MachineHooks\n\nclass Counting(MachineHooks):\n"
    hooks += "    async def on_action(self, name, context):\n        await anyio.sleep(60)\n"
    (project.folder / "hooks.py").write_text(hooks)
    project.write(machine=project.one_action("slow", extra="      timeout: 0.05\n"))
    result = project.flat("run", ".")
    assert result.code == 7
    assert "not done within 0.05 s" in result.err


def test_an_id_that_is_taken_ends_with_8_and_names_the_command(project: Project) -> None:
    project.flat("run", ".", "--id", "x", "--max-steps", "1")
    result = project.flat("run", ".", "--id", "x")
    assert result.code == 8
    assert "go on with it: flat resume x" in result.err


def test_a_finished_execution_is_not_resumed(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    result = project.flat("resume", "x")
    assert result.code == 8
    assert "done already" in result.err


def test_an_id_may_be_shortened_while_it_means_one(project: Project) -> None:
    project.flat("run", ".", "--id", "alpha1", "--max-steps", "1")
    assert project.flat("resume", "alp", "--more-steps", "9").code == 0
    project.flat("run", ".", "--id", "alpha2")
    result = project.flat("runs", "show", "alp")
    assert result.code == 2
    assert "alpha1" in result.err
    assert "alpha2" in result.err


@pytest.mark.parametrize("command", ["resume nope", "cancel nope", "runs show nope"])
def test_an_unknown_id_ends_with_9_and_makes_no_store(project: Project, command: str) -> None:
    assert project.flat(*command.split()).code == 9
    assert not Path("flat.db").exists()
    project.flat("run", ".")
    result = project.flat(*command.split())
    assert result.code == 9
    assert 'no execution "nope"' in result.err


def test_cancelling_ends_an_execution_for_good(project: Project) -> None:
    project.write(machine=project.WAIT)
    project.flat("run", ".", "-i", "task=7", "--id", "x")
    assert project.flat("cancel", "x", "--reason", "enough").code == 0
    assert project.flat("cancel", "x").code == 8
    assert project.flat("resume", "x").code == 8
    assert json.loads(project.flat("runs", "show", "x", "--json").out)["status"] == "cancelled"


def test_inputs_are_text_json_files_or_objects(project: Project) -> None:
    project.write(machine=project.WAIT.replace("{task: ", "{all: '{{ input | tojson }}', task: "))
    (project.folder / "f.txt").write_text("from a file")
    (project.folder / "f.json").write_text('{"task": 1, "b": [2]}')
    args = [
        "-i",
        "@f.json",
        "-i",
        "task=t",
        "-i",
        "n:=3",
        "-i",
        "f=@f.txt",
        "-i",
        "at=@@me",
        "-i",
        '{"o": {"p": 1}}',
    ]
    project.flat("run", ".", "--id", "x", *args)
    context = json.loads(project.flat("runs", "show", "x", "--json").out)["context"]
    assert json.loads(context["all"]) == {
        "task": "t", "b": [2], "n": 3, "f": "from a file", "at": "@me", "o": {"p": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-i", "nonsense"], "is not understood"),
        (["-i", "{nope"], "--input is not JSON"),
        (["-i", "n:=three"], "--input n:= is not JSON"),
        (["-i", "n:=NaN"], "NaN is not a JSON value"),
        (["-i", "n:=1e999"], "1e999 is too large for a number"),
        (["-i", "n:=" + "[" * 100_000], "nested too deeply"),
        (["-i", "@missing.json"], "cannot read missing.json"),
        (["-i", "@flat.toml"], "is not JSON"),
        (["--max-steps", "many"], "'--max-steps'"),
        (["--nonsense"], "--nonsense"),
        (["--scripted"], "--scripted"),
    ],
)
def test_bad_usage_ends_with_2_before_anything_runs(project: Project, args: list[str], words: str) -> None:
    if args == ["--scripted"]:
        project.write(machine=project.one_call())
    result = project.flat("run", ".", *args)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err
    assert not Path("flat.db").exists()


def test_a_memory_store_keeps_nothing(project: Project) -> None:
    assert project.flat("run", ".", "--store", "memory:").code == 0
    assert not Path("flat.db").exists()


@pytest.mark.parametrize("store", ["sqlite:///other.db", "other.db", "file:other"])
def test_the_store_is_an_option_or_in_the_environment(
    project: Project, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.flat("run", ".", "--id", "x", "--store", store).code == 0
    assert not Path("flat.db").exists()
    monkeypatch.setenv("FLAT_STORE", store)
    assert "x" in project.flat("runs", "list").out


def test_a_store_that_cannot_be_written_is_said_plainly(project: Project) -> None:
    result = project.flat("run", ".", "--store", "sqlite:///flat.toml/flat.db")
    assert result.code == 1
    assert "flat.toml/flat.db" in result.err
    assert "Traceback" not in result.err


def test_text_from_outside_cannot_act_on_the_terminal(project: Project) -> None:
    project.write(machine=project.one_action("shout", output="{said: '{{ context.said }}'}"))
    result = project.flat("run", ".", "--plain")
    shown = result.out.replace("\x1b[31mprinted by a hook", "")
    assert "\x1b" not in shown
    assert "\\u001b[31mred" in shown


def test_a_bug_is_called_one_and_shows_its_traceback_only_when_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError("impossible")

    monkeypatch.setattr("flat.cli.runs.list_runs", broken)
    result = project.flat("runs", "list")
    assert result.code == 70
    assert "this is a bug in flat: RuntimeError: impossible" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in project.flat("runs", "list", "-v").err


def test_an_id_of_a_finished_run_is_not_said_to_go_on(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    result = project.flat("run", ".", "--id", "x")
    assert result.code == 8
    assert "it is done; see flat runs show x" in result.err


@pytest.mark.parametrize(
    ("machine", "code"),
    [(LOOPING, 6), (WAITING, 4), (FAILING, 1)],
    ids=["limit", "waiting", "failed"],
)
def test_of_a_run_that_is_kept_nowhere_no_command_is_said_to_go_on(
    project: Project, machine: str, code: int
) -> None:
    project.write(machine=machine)
    result = project.flat("run", ".", "--store", "memory:")
    assert result.code == code
    assert "flat resume" not in result.err
    assert "flat runs" not in result.err
    assert "flat signal" not in result.err


def test_a_transition_that_is_missing_is_shown_with_its_place(project: Project) -> None:
    project.write(machine=STUCK)
    result = project.flat("run", ".", "-q")
    assert result.code == 1
    assert result.err.startswith(
        'error: Stuck in state "ask": machine.yml:9:23: no transition of state "ask" matched, and it is not final\n'
        ' 9 |         - {condition: "context.n == 2", to: done}\n'
    )
    assert project.flat("run", ".", "-q", "--compat").out == "{}\n"


@pytest.mark.parametrize(
    ("action", "words"),
    [("leave", "SystemExit: 3"), ("store", "context.o.deep[0] holds a builtins.object")],
)
def test_what_breaks_a_run_off_is_said_with_its_state_and_how_to_go_on(
    project: Project, action: str, words: str
) -> None:
    (project.folder / "hooks.py").write_text(
        project.HOOKS
        + "    def leave(self, context):\n        raise SystemExit(3)\n"
        + "    def store(self, context):\n        context['o'] = {'deep': [object()]}\n"
    )
    project.write(machine=project.one_action(action))
    result = project.flat("run", ".", "-q", "--id", "x")
    assert result.code == 1
    assert result.err.startswith('error: in state "act": ')
    assert words in result.err
    assert "continue with: flat resume x" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "store", ["sqlite:///x.db?synchronous=OFF", "sqlite://host", "file:", "redis://x?nosuch=1"]
)
def test_a_store_that_is_named_wrongly_is_bad_usage(project: Project, store: str) -> None:
    assert project.flat("run", ".", "--store", store).code == 2
    assert project.flat("runs", "list", "--store", store).code == 2
