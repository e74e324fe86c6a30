"""The examples that are trees: what is said to them turn by turn, what they answer, and by which steps.

What an example comes to is declared in `expected/NAME.yml`:

    turns:                  # one after the other, in one session
      - say: text           # null for what its flat.toml says; or `send`, a signal to the session
        response: text      # or `waits`, the question that it waits with
        path: [1.1 lead, "1.1 lead: divide"] # models asked and tools run, by turn, step and instance
        kill_at: text       # in the output of `flat run`: the process is killed there, and another goes on
    tree: [lines]           # the tree afterwards, as `flat runs show` has it
    sweep: [inputs]         # each a run of one turn, in which it dies once at every point of its life,
    every: 1                # or at every so many
    signals: {channel: …}   # what a sweep answers with
    files: {name: text}     # what it leaves in its folder
"""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flat import MemoryStore, Outcome, Runtime
from flat.cli.project import find_project
from flat.cli.tree_show import tree_lines
from flat.cli.tree_view import lane_of
from flat.cli.trees import Limits, load_tree, say_to, told
from flat.drivers.clock import Clock
from flat.hooks import Notice
from flat.runtime import Machine
from flat.runtime.waiting import suspended_data
from flat.testing.clock import VirtualClock
from flat.testing.crash import EXECUTION, Scenario, memory_places, sweep
from flat.testing.model_script import Script
from flat.testing.model_server import ScriptedModel
from flat.tree.run_intake import inbox_channel

from .conftest import Commands, Said, read_yaml
from .graphs import EXAMPLES

EXPECTED = Path(__file__).with_name("expected")
TREES = sorted(file.stem for file in EXPECTED.glob("tree_*.yml"))


@dataclass
class Walk:
    """Notes which models are asked and which tools are run."""

    asked: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    """How many had been asked for when each answer came."""

    def notify(self, notice: Notice) -> None:
        if notice.kind == "answered":
            self.answered.append(len(self.asked))
        if notice.kind == "perform" and notice.facts["effect"] in ("call", "tool"):
            self.asked.append(place(notice))

    @property
    def path(self) -> list[str]:
        """In the order of the tree: what a step does side by side begins in any order."""
        return sorted(self.asked, key=lambda one: (one.split(" ")[0], ":" in one, one.split(":")[0]))


def place(notice: Notice) -> str:
    kind, _, name = notice.facts["what"].partition(" ")
    step, lane = lane_of(notice)
    where = step if step == "command" else f"{step} {notice.node}"
    if lane.isdigit() and lane != "0":
        where += f"#{int(lane) + 1}"
    return f"{where}: {name}" if kind == "tool" else where


@pytest.fixture
def expected(name: str) -> dict[str, Any]:
    return {"signals": {}, "files": {}, "every": 1, **read_yaml(EXPECTED / f"{name}.yml")}


@pytest.fixture
def model(copied: Path) -> Iterator[ScriptedModel]:
    script = find_project(copied).script
    assert script is not None
    with ScriptedModel(Script.from_file(script), remember=True) as running:
        yield running


@pytest.fixture
def scripted(model: ScriptedModel, monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    """The example's modules can be imported, and its model is the scripted one."""
    for file in copied.glob("*.py"):  # one that was drawn, or copied for another test
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.syspath_prepend(str(copied))


def machine_of(folder: Path, model: ScriptedModel, until: str = "session") -> Machine:
    machine = load_tree(find_project(folder).machine, until=until)
    machine.model = {"provider": "openai", "base_url": model.base_url, "api_key": "none"}
    return machine


async def take(runtime: Runtime, machine: Machine, turn: Mapping[str, Any], said: Any) -> Outcome:
    """Have one turn: say something, or send a signal to whatever the session listens for."""
    if "send" not in turn:
        return await say_to(runtime, machine, EXECUTION, {"message": turn["say"] or said}, Limits())
    execution = await runtime.opened().get(EXECUTION)
    assert execution is not None
    inbox = inbox_channel(EXECUTION)
    channel = next((one for one in execution.channels if one != inbox), inbox)
    await runtime.signal(channel, turn["send"], to=EXECUTION)
    return await told(runtime, await runtime.resume(EXECUTION, machine))


@pytest.mark.anyio
@pytest.mark.parametrize("name", TREES)
async def test_each_turn_comes_to_its_answer_by_its_path(
    copied: Path, model: ScriptedModel, expected: dict[str, Any]
) -> None:
    machine, walk = machine_of(copied, model), Walk()
    said = find_project(copied).input.get("message")
    async with Runtime(MemoryStore(), clock=VirtualClock(), observers=[walk]) as runtime:
        for turn in expected["turns"]:
            walk.asked.clear()
            outcome = (await take(runtime, machine, turn, said)).raise_for_failure()
            if "waits" in turn:
                assert outcome.status == "waiting"
                assert [why for _, why in suspended_data(outcome.context["tree"])] == [turn["waits"]]
            else:
                assert outcome.output["content"] == turn["response"]
            assert walk.path == turn["path"]
        context = (await runtime.inspect(EXECUTION)).root.context
    assert tree_lines(context, None) == expected["tree"]
    for file, text in expected["files"].items():
        assert (copied / file).read_text(encoding="utf-8") == text


@pytest.mark.anyio
@pytest.mark.parametrize("name", TREES)
async def test_it_dies_anywhere_and_is_resumed_with_the_same_result(
    copied: Path, model: ScriptedModel, expected: dict[str, Any]
) -> None:
    def machine(clock: Clock) -> Machine:
        return machine_of(copied, model, until="end_turn")

    for given in expected["sweep"]:
        scenario = Scenario(machine=machine, input=given, signals=expected["signals"], unordered=True)
        report = await sweep(scenario, memory_places(), every=expected["every"])
        report.check()
        assert report.points > 5


@pytest.mark.parametrize("name", TREES)
def test_its_process_is_killed_and_another_goes_on(
    copied: Path, expected: dict[str, Any], commands: Commands
) -> None:
    for turn in expected["turns"]:
        said = begun(commands, copied, turn)
        if "kill_at" in turn:
            assert said.code == -9, said.text
            said = commands(copied, ["resume", EXECUTION, "--json"])
        if "waits" in turn:
            assert said.code == 4, said.text
            assert turn["waits"] in said.text
        else:
            assert said.code == 0, said.text
            (result,) = [data for data in events(said) if data["event"] == "result"]
            assert result["output"]["content"] == turn["response"]
    shown = commands(copied, ["runs", "show", EXECUTION])
    assert "\n".join(expected["tree"]) in shown.text
    for file, text in expected["files"].items():
        assert (copied / file).read_text(encoding="utf-8") == text


def begun(commands: Commands, folder: Path, turn: Mapping[str, Any]) -> Said:
    """Have a turn by the command line, and die where it says."""
    die_at = turn.get("kill_at")
    how = "--json" if die_at is None else "--plain"
    if "send" not in turn:
        message = ["-m", turn["say"]] if turn["say"] else []
        return commands(folder, ["run", ".", "--id", EXECUTION, how, *message], die_at=die_at)
    sent = commands(folder, ["signal", EXECUTION, json.dumps(turn["send"])])
    assert sent.code == 0, sent.text
    return commands(folder, ["resume", EXECUTION, how], die_at=die_at)


def events(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.text.splitlines() if line.startswith("{")]


def test_they_are_typed() -> None:
    files = [file for name in [*TREES, "mixed"] for file in (EXAMPLES / name).glob("*.py")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, files)],
        cwd=EXAMPLES.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"Success: no issues found in {len(files)} source files\n"


# -- what is special about each --------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["tree_research"])
async def test_the_three_workers_are_asked_at_the_same_time(copied: Path, model: ScriptedModel) -> None:
    walk = Walk()
    async with Runtime(MemoryStore(), observers=[walk]) as runtime:
        given = {"message": find_project(copied).input["message"]}
        (await runtime.start(machine_of(copied, model), given)).raise_for_failure()
    of_lead = 2  # its model call, and its transition
    assert walk.answered[of_lead] == of_lead + 3


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["tree_demo"])
async def test_the_demo_runs_as_a_program(scripted: None, capsys: pytest.CaptureFixture[str]) -> None:
    await importlib.import_module("demo").main()
    assert capsys.readouterr().out == "Hello! What can I do for you?\n"


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["tree_chat"])
async def test_a_line_with_a_slash_is_a_command(
    scripted: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module("chat")
    typed = ["We need milk and eggs.", "/clear", "/empty", "We need milk and eggs."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed)))
    await program.chat("mine")
    assert capsys.readouterr().out.splitlines() == [
        "Milk and eggs are on the list.", "2 off the list", '"host" has no command "empty"; known: clear',
        "Milk and eggs are on the list.",
    ]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["tree_approval"])
@pytest.mark.parametrize(
    ("answer", "said", "orders"),
    [("yes", "The desk lamp is ordered, for 49 EUR.", 1), ("no, too dear", "I have not ordered it.", 0)],
)
async def test_another_program_answers_what_the_first_left_waiting(
    copied: Path, scripted: None, commands: Commands, answer: str, said: str, orders: int,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = commands(copied, ["run", ".", "--id", "lamp"])
    assert first.code == 4, first.text
    program = importlib.import_module("approve")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{answer}\n"))
    await program.approve("lamp")
    assert capsys.readouterr().out == f"Buy the desk lamp for 49.0 EUR? {said}\n"
    assert [name for name in os.listdir() if name == "orders"] == ["orders"] * orders


@pytest.mark.parametrize("name", ["mixed"])
def test_a_machine_that_the_tree_uses_must_be_beside_it(copied: Path, commands: Commands) -> None:
    flow = copied / "machine.yml"
    flow.write_text(flow.read_text().replace("    invoice: ", "    invoices: "))
    said = commands(copied, ["validate", "."])
    assert said.code == 3
    assert 'it uses the machine "invoice", which has no entry in `machines` here' in said.text
    assert 'did you mean "invoices"?' in said.text


@pytest.mark.parametrize("name", ["mixed"])
@pytest.mark.parametrize(
    "kill_at",
    [
        "take_in: agent clerk answered", "2  repair", "mechanic: agent mechanic answered", "tool price done",
        "invoice#1/write", "invoice#1/done", "machine invoice done", "tool transition_hand_back done",
        "machine workshop done",
    ],
)  # fmt: skip
def test_a_mixed_run_is_killed_in_any_of_its_three_parts(
    copied: Path, commands: Commands, kill_at: str
) -> None:
    said = commands(copied, ["run", ".", "--id", "repair", "--plain"], die_at=kill_at)
    assert said.code == -9, said.text
    said = commands(copied, ["resume", "repair", "--json"])
    assert said.code == 0, said.text
    (result,) = [data for data in events(said) if data["event"] == "result"]
    assert result["output"] == read_yaml(EXPECTED / "mixed.yml")["output"]
