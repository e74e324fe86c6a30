"""`flat signal`, `flat signals` and `flat dispatch`, in this process and as processes that are killed."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from flat.backends import open_store

if TYPE_CHECKING:
    from tests.cli.conftest import Project, Result

WAIT_THEN = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: approval
  context: {task: "{{ input.task }}"}
  hooks: counting
  states:
    ask:
      type: initial
      wait_for: "approval/{{ context.task }}"
      output_to_context: {answer: "{{ output.value }}"}
      transitions: [{to: then}]
    then:
      action: ACTION
      transitions: [{to: done}]
    done:
      type: final
      output: {answer: "{{ context.answer }}"}
"""
HOOKS = """\
import os, time
from flat import MachineHooks

class Counting(MachineHooks):
    def on_action(self, action_name, context):
        with open("ledger", "a") as ledger:
            ledger.write(context["answer"] + "\\n")
        if action_name == "exit":
            raise SystemExit(3)
        while action_name == "hang" and not os.path.exists("go"):
            time.sleep(0.01)
        print("printed by a hook")
        return context
"""


@pytest.fixture
def waiting(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose machine waits, does an action, and ends; triggers go to a folder of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    project.environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")  # type: ignore[index]
    (project.folder / "hooks.py").write_text(HOOKS)
    project.write(machine=WAIT_THEN.replace("ACTION", "note"))
    return project


def park(project: Project, *ids: str, task: str = "{id}") -> None:
    for id_ in ids:
        result = project.flat("run", ".", "--id", id_, "-i", f"task={task.format(id=id_)}")
        assert result.code == 4, result


def statuses(project: Project) -> dict[str, str]:
    listed = json.loads(project.flat("runs", "list", "--json").out)
    return {one["execution_id"]: one["status"] for one in listed}


def ledger(project: Project) -> list[str]:
    return (project.folder / "ledger").read_text().split()


def backlog(project: Project, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(project.flat("signals", "list", "--json", *more).out)
    return found


# -- sending and looking -----------------------------------------------------------------------


def test_a_signal_to_a_channel_is_kept_until_somebody_waits(waiting: Project) -> None:
    assert waiting.flat("signal", "approval/7", '"yes"').out == "sent to approval/7\n"
    listed = waiting.flat("signals", "list")
    assert listed.out.splitlines()[0].split() == ["id", "channel", "for", "sent", "data", "waiting"]
    assert "anybody" in listed.out
    assert '"yes"' in listed.out
    result = waiting.flat("run", ".", "-i", "task=7", "-q")
    assert (result.code, json.loads(result.out.replace("printed by a hook\n", ""))) == (0, {"answer": "yes"})
    empty = waiting.flat("signals", "list")
    assert (empty.out, empty.err) == ("", "there is no signal that nobody has taken\n")


def test_a_signal_to_an_execution_reaches_it_alone(waiting: Project) -> None:
    park(waiting, "a", "b", task="same")
    sent = waiting.flat("signal", "b", '"for you"')
    assert sent.out == "sent to approval/same\napproval waits for it: flat resume b\n"
    assert [one["to"] for one in backlog(waiting)] == ["b"]
    assert waiting.flat("dispatch", "--once").code == 0
    assert statuses(waiting) == {"a": "waiting", "b": "done"}


def test_a_signal_to_an_execution_that_waits_for_nothing_is_refused(waiting: Project) -> None:
    park(waiting, "a")
    waiting.flat("signal", "a", '"yes"')
    waiting.flat("dispatch", "--once")
    again = waiting.flat("signal", "a", '"yes"')
    assert (again.code, again.out) == (8, "")
    assert "execution a is done and waits for nothing" in again.err
    assert backlog(waiting) == []


def test_signals_are_listed_by_channel_with_who_waits(waiting: Project) -> None:
    park(waiting, "a")
    for channel in ("approval/a", "other"):
        waiting.flat("signal", channel, '{"n": 1}')
    (one,) = backlog(waiting, "--channel", "approval/a")
    assert (one["channel"], one["to"], one["data"], one["waiting"]) == ("approval/a", None, {"n": 1}, 1)
    assert len(backlog(waiting)) == 2
    none = waiting.flat("signals", "list", "--channel", "nope")
    assert none.err == 'there is no signal that nobody has taken on "nope"\n'


def test_hostile_channels_do_nothing_to_the_screen_or_the_store(waiting: Project) -> None:
    channels = ("\x1b[31mred", "../../etc", "'; DROP TABLE signals; --", "a\nb", "\u202egnp")
    for channel in channels:
        result = waiting.flat("signal", channel)
        assert result.code == 0, result
        assert "\x1b" not in result.out
        assert result.out.count("\n") == 1
    listed = waiting.flat("signals", "list")
    assert len(listed.out.splitlines()) == 1 + len(channels)
    assert not {"\x1b", "\u202e"} & set(listed.out)
    assert {one["channel"] for one in backlog(waiting)} == set(channels)


def test_looking_into_a_store_that_is_not_there_makes_none(waiting: Project) -> None:
    assert waiting.flat("signals", "list").code == 0
    assert waiting.flat("signals", "retry", "x").code == 9
    assert not (waiting.folder / "flat.db").exists()


# -- dispatching once --------------------------------------------------------------------------


def test_dispatch_resumes_whoever_has_a_signal(waiting: Project) -> None:
    park(waiting, "a", "b", "c")
    for id_ in ("a", "c"):
        waiting.flat("signal", f"approval/{id_}", f'"{id_}"')
    result = waiting.flat("dispatch", "--once", "--concurrency", "1")
    assert result.code == 0, result
    lines = [line for line in result.out.splitlines() if line != "printed by a hook"]
    assert lines == ["a  approval  done", "c  approval  done", "resumed 2 executions"]
    assert statuses(waiting) == {"a": "done", "b": "waiting", "c": "done"}
    assert ledger(waiting) == ["a", "c"]
    assert waiting.flat("dispatch", "--once").out.startswith("nothing to do")


def test_dispatch_in_json_is_json_alone(waiting: Project) -> None:
    park(waiting, "a")
    waiting.flat("signal", "approval/a", '"x"')
    result = waiting.flat("dispatch", "--once", "--json")
    assert [line["event"] for line in result.json_lines()] == ["resumed", "dispatched"]
    assert result.json_lines()[0]["status"] == "done"
    assert result.json_lines()[1]["resumed"] == ["a"]


def test_dispatch_gives_a_broadcast_to_all(waiting: Project) -> None:
    park(waiting, "a", "b", "c", task="same")
    sent = waiting.flat("signal", "approval/same", '"news"')
    assert "or wake all 3: flat dispatch --once" in sent.out
    result = waiting.flat("dispatch", "--once", "--json")
    assert result.code == 0
    assert set(statuses(waiting).values()) == {"done"}
    assert ledger(waiting) == ["news"] * 3


def test_what_kills_its_run_becomes_a_dead_letter_and_can_be_retried(waiting: Project) -> None:
    waiting.write(toml=waiting.TOML.replace("hooks.py:Counting", "gone.py:Counting"))
    shutil.move(waiting.folder / "hooks.py", waiting.folder / "gone.py")
    park(waiting, "a")
    (waiting.folder / "gone.py").rename(waiting.folder / "hooks.py")
    waiting.flat("signal", "approval/a", '"yes"')
    result = waiting.flat("dispatch", "--once")
    assert result.code == 1, result
    assert "is a dead letter" in result.err
    assert backlog(waiting) == []
    (letter,) = backlog(waiting, "--dead")
    assert "gone.py" in letter["reason"]
    assert letter["data"] == "yes"
    assert "tried 3 times" in waiting.flat("signals", "list", "--dead").out
    waiting.write(toml=waiting.TOML)
    retried = waiting.flat("signals", "retry", letter["signal_id"])
    assert retried.out.splitlines()[0] == f"signal {letter['signal_id']} is back on approval/a"
    assert waiting.flat("dispatch", "--once").code == 0
    assert statuses(waiting) == {"a": "done"}
    assert waiting.flat("signals", "retry", letter["signal_id"]).code == 9


def test_what_belongs_to_another_project_is_left_to_it(
    waiting: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    park(waiting, "a")
    waiting.flat("signal", "approval/a", '"yes"')
    elsewhere = waiting.folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store = f"sqlite:///{waiting.folder}/flat.db"
    result = waiting.flat("dispatch", "--once", "--store", store)
    assert result.code == 0
    assert "which is not below" in result.err
    assert not (elsewhere / "ledger").exists()
    allowed = waiting.flat("dispatch", "--once", "--store", store, "--project", str(waiting.folder))
    assert "a  approval  done" in allowed.out


def test_dispatch_needs_to_be_told_how(waiting: Project) -> None:
    for wrong in (
        (), ("--once", "--watch"), ("--once", "--install-units", "x"), ("--print-units", "cron"),
        ("--once", "--store", "memory:"), ("--print-units", "systemd", "--store", "memory:"),
        ("--once", "--project", "nowhere"), ("--watch", "--trigger", "bell"),
        ("--watch", "--trigger", "none", "--trigger-path", "x"),
    ):  # fmt: skip
        result = waiting.flat("dispatch", *wrong)
        assert result.code in (2, 3), (wrong, result)
        assert result.err.startswith("error: "), (wrong, result)


# -- units -------------------------------------------------------------------------------------


def words(line: str) -> list[str]:
    """A systemd command line as systemd reads it."""
    found, current, quoted, at = [], "", False, 0
    while at < len(line):
        c = line[at]
        if c == "\\":
            at += 1
            current += line[at]
        elif c == '"':
            if quoted:
                found.append(current.replace("$$", "$").replace("%%", "%"))
                current = ""
            quoted = not quoted
        elif quoted:
            current += c
        at += 1
    return found


def test_systemd_units_say_the_same_from_anywhere(
    waiting: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'my "odd" 100% $HOME \\ folder'
    folder.mkdir()
    monkeypatch.chdir(folder)
    result = waiting.flat("dispatch", "--print-units", "systemd", "--store", "runs one.db")
    assert result.code == 0, result
    lines = result.out.splitlines()
    command = words(next(line for line in lines if line.startswith("ExecStart=")).partition("=")[2])
    assert command[1:6] == ["-m", "flat.cli", "dispatch", "--once", "--store"]
    scheme, _, path = command[6].partition(":///")
    assert (scheme, unquote(path)) == ("sqlite", str(folder / "runs one.db"))
    assert f"WorkingDirectory={str(folder).replace('%', '%%')}" in lines
    assert f"PathChanged={tmp_path}/run/flat/trigger" in lines
    store = open_store(command[6])
    assert (folder / "runs one.db").exists()
    del store


def test_installed_units_are_there_and_their_trigger_too(waiting: Project, tmp_path: Path) -> None:
    units = tmp_path / "units"
    result = waiting.flat("dispatch", "--print-units", "systemd", "--install-units", str(units))
    assert result.code == 0, result
    names = sorted(path.name for path in units.iterdir())
    assert [name.partition(".")[2] for name in names] == ["path", "service", "timer"]
    assert len({name.partition(".")[0] for name in names}) == 1
    assert (tmp_path / "run" / "flat" / "trigger").exists()
    assert f"systemctl --user enable --now {names[0]}" in result.out.replace("daemon-reload && ", "")
    service = (units / names[1]).read_text()
    line = next(line for line in service.splitlines() if line.startswith("ExecStart="))
    done = subprocess.run(words(line.partition("=")[2]), cwd=waiting.folder, capture_output=True, check=False)
    assert done.returncode == 0, done


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_finds_no_fault_with_the_units(waiting: Project, tmp_path: Path) -> None:
    units = tmp_path / "units with space"
    waiting.flat("dispatch", "--print-units", "systemd", "--install-units", str(units))
    paths = [str(path) for path in units.iterdir()]
    done = subprocess.run(["systemd-analyze", "--user", "verify", *paths], capture_output=True, check=False)
    assert done.returncode == 0, done


def test_a_launchd_agent_is_a_property_list(waiting: Project, tmp_path: Path) -> None:
    result = waiting.flat("dispatch", "--print-units", "launchd", "--concurrency", "4")
    agent = plistlib.loads(result.out.encode())
    assert agent["WatchPaths"] == [str(tmp_path / "run" / "flat" / "trigger")]
    assert agent["WorkingDirectory"] == str(waiting.folder)
    assert agent["ProgramArguments"][-2:] == ["--concurrency", "4"]
    assert agent["Label"].startswith("flat-dispatch-")


# -- processes ---------------------------------------------------------------------------------


def watch(project: Project, *args: str) -> subprocess.Popen[str]:
    """A dispatcher that has begun to watch; it would look again by itself only after an hour."""
    process = project.start("dispatch", "--watch", "--poll", "3600", *args)
    assert process.stdout is not None
    assert "watching" in process.stdout.readline()
    return process


def said(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"it never said {text!r}")


def wait_for_file(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        os.sched_yield()


@pytest.mark.parametrize("kind", ["file", "socket"])
def test_a_watching_dispatcher_is_woken_by_a_signal_from_another_process(waiting: Project, kind: str) -> None:
    park(waiting, "a", "b")
    process = watch(waiting, "--trigger", kind)
    try:
        for id_ in ("a", "b"):
            sent = waiting.process("signal", f"approval/{id_}", f'"{id_}"', "--trigger", kind)
            assert sent.code == 0, sent
            said(process, f"{id_}  approval  done")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
    finally:
        process.kill()
    assert ledger(waiting) == ["a", "b"]


def test_a_dispatcher_that_was_killed_half_way_loses_and_doubles_nothing(waiting: Project) -> None:
    waiting.write(machine=WAIT_THEN.replace("ACTION", "hang"))
    ids = [f"e{number}" for number in range(4)]
    park(waiting, *ids)
    process = watch(waiting, "--concurrency", "1")
    for id_ in ids:
        waiting.flat("signal", f"approval/{id_}", f'"{id_}"')
    wait_for_file(waiting.folder / "ledger", process)
    process.kill()
    process.communicate()
    (hanging,) = ledger(waiting)
    assert sorted(one["channel"] for one in backlog(waiting)) == [
        f"approval/{id_}" for id_ in ids if id_ != hanging
    ]
    (waiting.folder / "go").write_text("")
    result = waiting.process("dispatch", "--once")
    assert result.code == 0, result
    resumed = waiting.process("resume", hanging, "-q")
    assert resumed.code == 0, resumed
    assert statuses(waiting) == dict.fromkeys(ids, "done")
    assert sorted(ledger(waiting)) == sorted([*ids, hanging]), (
        "the action in flight was in doubt, and done again"
    )
    for id_ in ids:
        shown: Result = waiting.flat("runs", "show", id_, "--json")
        assert json.loads(shown.out)["output"] == {"answer": id_}


def test_ctrl_c_ends_a_watch_and_an_unfinished_once(waiting: Project) -> None:
    waiting.write(machine=WAIT_THEN.replace("ACTION", "hang"))
    park(waiting, "a", "b")
    process = watch(waiting)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0
    for id_ in ("a", "b"):
        waiting.flat("signal", f"approval/{id_}", f'"{id_}"')
    once = waiting.start("dispatch", "--once", "--concurrency", "1")
    wait_for_file(waiting.folder / "ledger", once)
    once.send_signal(signal.SIGINT)
    (waiting.folder / "go").write_text("")
    _, err = once.communicate(timeout=20)
    assert once.returncode == 130, err
    assert "flat dispatch --once" in err
    assert statuses(waiting)["b"] == "waiting"
    assert len(backlog(waiting)) == 1
