"""`flat start`, `flat worker`, `flat workers` and `flat runs revive`, also as processes that are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flat.cli.worker_machines import trusted
from flat.errors import BackendError

if TYPE_CHECKING:
    from tests.cli.conftest import Project

HOOKS = """\
import os, pathlib, time
from flat import MachineHooks

pathlib.Path("imported").touch()

class Counting(MachineHooks):
    def on_action(self, action_name, context):
        with open("ledger", "a") as ledger:
            ledger.write(f"{context['n']}\\n")
        if os.path.exists("die"):
            os._exit(9)
        while os.path.exists("hang") and not os.path.exists("go"):
            time.sleep(0.01)
        context["n"] += 1
        return context
"""


@pytest.fixture
def shop(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose machine does three actions; triggers go to a folder of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    project.environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")  # type: ignore[index]
    (project.folder / "hooks.py").write_text(HOOKS)
    return project


@pytest.fixture
def processes(shop: Project) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that the test has started; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def statuses(project: Project) -> dict[str, str]:
    listed = json.loads(project.flat("runs", "list", "--json").out)
    return {one["execution_id"]: one["status"] for one in listed}


def done(project: Project) -> list[str]:
    ledger = project.folder / "ledger"
    return ledger.read_text().split() if ledger.exists() else []


def wait_until(true: Any, *processes: subprocess.Popen[str]) -> None:
    """Wait for something that another process does."""
    limit = time.monotonic() + 90
    while not true():
        assert time.monotonic() < limit, "it did not happen"
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


# -- starting ----------------------------------------------------------------------------------


def test_start_prints_an_id_and_runs_nothing(shop: Project) -> None:
    result = shop.flat("start", ".")
    assert (result.code, result.err) == (0, "")
    assert statuses(shop) == {result.out.strip(): "ready"}
    assert not (shop.folder / "imported").exists()


def test_start_says_in_json_what_was_queued(shop: Project) -> None:
    (line,) = shop.flat("start", ".", "--id", "x", "--json").json_lines()
    assert line == {
        "execution_id": "x",
        "machine": "counter",
        "status": "ready",
        "store": "sqlite:///flat.db",
    }


def test_the_input_and_the_limits_of_start_are_those_of_the_run(shop: Project) -> None:
    machine = shop.LOOP.replace("context: {n: 0, to: 3}", 'context: {n: 0, to: "{{ input.to }}"}')
    shop.write(machine=machine.replace("hooks:", "settings: {native_types: true}\n  hooks:"))
    shop.flat("start", ".", "--id", "x", "-i", "to:=5")
    shop.flat("start", ".", "--id", "y", "-i", "to:=5", "--max-steps", "2")
    assert shop.flat("worker", "--drain").code == 0
    assert statuses(shop) == {"x": "done", "y": "limit"}
    assert sorted(done(shop)) == ["0", "0", "1", "1", "2", "3", "4"]


def test_an_id_that_is_taken_is_refused(shop: Project) -> None:
    shop.flat("start", ".", "--id", "x")
    result = shop.flat("start", ".", "--id", "x")
    assert result.code == 8
    assert 'there is an execution "x" already' in result.err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["start", ".", "--store", "memory:"], 2, "nothing is kept in memory:"),
        (["start", ".", "--id", " "], 2, "--id is empty"),
        (["start", "nowhere.yml"], 3, "nowhere.yml"),
        (["start", ".", "-i", "novalue"], 2, "novalue"),
        (["worker", "--store", "memory:"], 2, "a worker needs a store that is kept"),
        (["worker", "--once", "--drain"], 2, "exclude each other"),
        (["worker", "nowhere"], 2, "nowhere is neither a folder nor a machine file"),
        (["runs", "revive", "nobody"], 9, "nobody"),
    ],
)
def test_what_cannot_be_is_refused_in_words(shop: Project, args: list[str], code: int, said: str) -> None:
    result = shop.flat(*args)
    assert (result.code, said in result.err) == (code, True), result


# -- working -----------------------------------------------------------------------------------


def test_a_worker_drains_the_queue_and_says_what_it_ran(shop: Project) -> None:
    for id_ in "xyz":
        shop.flat("start", ".", "--id", id_)
    result = shop.flat("worker", "--drain", "--concurrency", "1")
    assert result.code == 0
    assert result.out.splitlines() == [*(f"{i}  counter  done" for i in "xyz"), "ran 3 executions"]
    assert set(statuses(shop).values()) == {"done"}
    assert shop.flat("worker", "--drain").out == "nothing to do\n"


def test_a_worker_tells_in_json_what_it_does(shop: Project) -> None:
    shop.flat("start", ".", "--id", "x")
    lines = shop.flat("worker", "--drain", "--json").json_lines()
    assert [line["event"] for line in lines] == ["resumed", "worked"]
    assert (lines[0]["execution_id"], lines[0]["status"], lines[1]["ran"]) == ("x", "done", 1)


def test_once_takes_as_many_as_run_at_a_time(shop: Project) -> None:
    for id_ in "xyz":
        shop.flat("start", ".", "--id", id_)
    assert shop.flat("worker", "--once", "--concurrency", "2").code == 0
    assert sorted(statuses(shop).values()) == ["done", "done", "ready"]


def test_a_worker_runs_nothing_that_came_from_elsewhere_and_imports_nothing(
    shop: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.flat("start", ".", "--id", "x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store = f"sqlite:///{shop.folder}/flat.db"
    result = shop.flat("worker", "--drain", "--store", store)
    assert result.code == 0
    assert "x is left as it is: it came from" in result.err
    assert "name its folder: flat worker FOLDER" in result.err
    assert not list(tmp_path.rglob("imported"))
    monkeypatch.chdir(shop.folder)
    assert statuses(shop) == {"x": "ready"}
    monkeypatch.chdir(elsewhere)
    assert "x  counter  done" in shop.flat("worker", str(shop.folder), "--drain", "--store", store).out


def test_a_worker_for_one_file_leaves_its_neighbours_alone(shop: Project) -> None:
    other = shop.folder / "other.yml"
    other.write_text(shop.LOOP.replace("name: counter", "name: other"))
    shop.flat("start", "machine.yml", "--id", "x")
    shop.flat("start", "other.yml", "--id", "y")
    result = shop.flat("worker", "other.yml", "--drain")
    assert statuses(shop) == {"x": "ready", "y": "done"}
    assert "x is left as it is" in result.err


def test_a_store_cannot_have_a_module_imported_that_is_not_where_it_says(tmp_path: Path) -> None:
    (tmp_path / "own.py").touch()
    trust = trusted([tmp_path], hint="")
    trust.check(tmp_path / "own:charter")
    trust.check(tmp_path / "own.py:charter")
    with pytest.raises(BackendError, match="there is no such module"):
        trust.check(tmp_path / "antigravity:charter")
    (tmp_path / "link.py").symlink_to("/etc/hostname")
    for reference in ("link.py:charter", "link:charter"):
        with pytest.raises(BackendError, match="not below"):
            trust.check(tmp_path / reference)
    for folder in (tmp_path / "sub", tmp_path.parent):
        with pytest.raises(BackendError, match="not below"):
            trusted([tmp_path / "own:charter"], hint="").check(folder)


def test_a_worker_is_woken_by_start_and_by_signals(
    shop: Project, processes: list[subprocess.Popen[str]]
) -> None:
    shop.write(machine=shop.WAIT)
    worker = shop.start("worker", "--poll", "1000", "--json")
    processes.append(worker)
    assert worker.stdout is not None
    assert json.loads(worker.stdout.readline())["event"] == "working"
    shop.flat("start", ".", "--id", "x", "-i", "task=7")
    event = json.loads(worker.stdout.readline())
    assert (event["status"], event["waiting_on"]) == ("waiting", ["approval/7"])
    shop.flat("signal", "approval/7", '{"value": "yes"}')
    assert json.loads(worker.stdout.readline())["status"] == "done"


# -- stopping ----------------------------------------------------------------------------------


def hold(shop: Project, processes: list[subprocess.Popen[str]], *args: str) -> subprocess.Popen[str]:
    """A worker in the middle of an action, which goes on when there is a file `go`."""
    (shop.folder / "hang").touch()
    shop.flat("start", ".", "--id", "x")
    worker = shop.start("worker", *args)
    processes.append(worker)
    wait_until(lambda: done(shop) == ["0"], worker)
    return worker


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_ends_after_the_step_in_hand(
    shop: Project, processes: list[subprocess.Popen[str]], how: signal.Signals
) -> None:
    worker = hold(shop, processes)
    worker.send_signal(how)
    (shop.folder / "go").touch()
    out, err = worker.communicate(timeout=90)
    assert (worker.returncode, err) == (0, "")
    assert "x  counter  handed back in count" in out
    assert (statuses(shop), done(shop)) == ({"x": "ready"}, ["0"])
    (one,) = json.loads(shop.flat("workers", "--all", "--json").out)
    assert one["status"] == "terminated"
    assert shop.flat("worker", "--drain").code == 0
    assert (statuses(shop), done(shop)) == ({"x": "done"}, ["0", "1", "2"])


def test_a_worker_that_is_told_twice_ends_at_once_and_loses_nothing(
    shop: Project, processes: list[subprocess.Popen[str]]
) -> None:
    worker = hold(shop, processes)
    assert worker.stderr is not None
    worker.send_signal(signal.SIGTERM)
    assert "once more stops at once" in worker.stderr.readline()
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=90)
    assert worker.returncode == 130
    assert done(shop) == ["0"]
    (shop.folder / "go").touch()
    assert shop.flat("worker", "--drain").code == 0
    assert (statuses(shop), done(shop)) == ({"x": "done"}, ["0", "0", "1", "2"])


def test_a_drain_that_is_interrupted_says_how_to_go_on(
    shop: Project, processes: list[subprocess.Popen[str]]
) -> None:
    worker = hold(shop, processes, "--drain")
    worker.send_signal(signal.SIGINT)
    (shop.folder / "go").touch()
    _, err = worker.communicate(timeout=90)
    assert worker.returncode == 130
    assert "flat worker --drain" in err
    assert statuses(shop) == {"x": "ready"}


def test_what_a_killed_worker_ran_is_taken_over_by_the_next(
    shop: Project, processes: list[subprocess.Popen[str]]
) -> None:
    worker = hold(shop, processes)
    worker.kill()
    worker.communicate()
    assert statuses(shop) == {"x": "interrupted"}
    (shop.folder / "go").touch()
    assert "1 of them taken over" in shop.flat("worker", "--drain").out
    assert (statuses(shop), done(shop)) == ({"x": "done"}, ["0", "0", "1", "2"])


def test_an_execution_that_kills_its_workers_is_buried_and_revived(shop: Project) -> None:
    shop.flat("start", ".", "--id", "x")
    (shop.folder / "die").touch()
    for _ in range(3):
        assert shop.process("worker", "--drain").code == 9
    result = shop.flat("worker", "--drain")
    assert result.code == 1
    assert "x is buried: its worker died 3 times at the same place" in result.err
    assert "flat runs revive x" in result.err
    assert statuses(shop) == {"x": "buried"}
    assert "buried" in shop.flat("runs", "list", "--status", "buried").out
    (shop.folder / "die").unlink()
    assert shop.flat("worker", "--drain").out == "nothing to do\n"
    assert shop.flat("runs", "revive", "x").out == "execution x is ready for a worker: flat worker\n"
    assert shop.flat("worker", "--drain").code == 0
    assert statuses(shop) == {"x": "done"}
    assert done(shop) == ["0"] * 4 + ["1", "2"]
    assert shop.flat("runs", "revive", "x").code == 8


# -- the register ------------------------------------------------------------------------------


def told(shop: Project) -> Any:
    """What the register says of the one worker there is."""
    (data,) = json.loads(shop.flat("workers", "--json").out)
    return data


def test_workers_are_listed_with_what_they_run(shop: Project, processes: list[subprocess.Popen[str]]) -> None:
    assert "no worker is at work" in shop.flat("workers").err
    worker = hold(shop, processes, "--name", "w1", "--concurrency", "4", "--lease", "0.5")
    (shop.folder / "go").touch()
    wait_until(lambda: statuses(shop) == {"x": "done"}, worker)
    wait_until(lambda: "0 of 4" in shop.flat("workers").out and told(shop)["metadata"]["ran"] == 1, worker)
    line = shop.flat("workers").out.splitlines()[1]
    assert line.split()[:2] == ["w1", "active"]
    assert "0 of 4" in line
    data = told(shop)
    assert (data["worker_id"], data["pid"]) == ("w1", worker.pid)


def test_a_worker_that_was_killed_here_is_seen_to_be_gone_at_once(
    shop: Project, processes: list[subprocess.Popen[str]]
) -> None:
    worker = hold(shop, processes, "--name", "w1")
    wait_until(lambda: told(shop)["metadata"].get("runs") == ["x"], worker)
    assert told(shop)["status"] == "active"
    worker.kill()
    worker.communicate()
    assert told(shop)["status"] == "gone"
    assert shop.flat("workers").out.splitlines()[1].split()[:2] == ["w1", "gone"]


def test_a_store_without_a_register_says_so(shop: Project) -> None:
    shop.flat("start", ".", "--id", "x", "--store", "file:runs")
    assert shop.flat("worker", "--drain", "--store", "file:runs").code == 0
    result = shop.flat("workers", "--store", "file:runs")
    assert result.code == 2
    assert "enter themselves nowhere" in result.err


def test_queueing_needs_no_more_than_loading_the_machine(shop: Project) -> None:
    """Neither the worker nor a model is imported by whoever only looks at `--help`."""
    code = "import sys, flat.cli.app; print(sorted(m for m in sys.modules if m in ('flat.drivers.pool', 'litellm')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
