"""Every example: its README, its picture, its run, and its run through a crash.

What an example comes to is declared in `expected/NAME.yml`:

    input: {…}            # beside what its flat.toml says
    output: {…}           # the whole output
    path: [a, b, a, done] # the states that the machine goes through
    children: {child: 2}  # how many executions of each other machine have ended as done
    signals: {channel: …} # what is sent when it waits on a channel; the execution's id is `swept`
    kill_at: "4  judge"   # a text in the output of `flat run`, at which the process is killed
    sweep: 9              # at every so many points of its life it dies, in this process; 0 for none
    files: {name: text}   # what it leaves in its folder
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import flat
from flat import MemoryStore, Outcome, Runtime
from flat.cli.project import find_project
from flat.drivers.clock import Clock
from flat.hooks import Notice
from flat.runtime import Machine
from flat.runtime.machine import litellm_agent
from flat.testing.clock import VirtualClock
from flat.testing.crash import EXECUTION, Scenario, memory_places, sweep
from flat.testing.model_script import Script
from flat.testing.model_server import ScriptedModel

from .conftest import Commands, read_yaml
from .graphs import EXAMPLES, LIST, NAMES, all_listed, drawn, shown

EXPECTED = Path(__file__).with_name("expected")
RUNNABLE = sorted(file.stem for file in EXPECTED.glob("*.yml") if not file.stem.startswith("tree_"))
OWN_TESTS = {
    "distributed_worker",
    "ticket_triage",
    "tree_approval",
    "tree_chat",
    "tree_demo",
    "tree_research",
}
"""Those that are run in another way, and have tests of their own: `test_NAME*.py`."""
WARNED = {"error_handling": "there is no file ./agents/specialist.yml"}
"""What `flat validate` has to say about one that is wrong on purpose."""
MOST_LINES = 16
"""Of a README without its picture."""


@dataclass
class Walk:
    """Notes the states that an execution goes through."""

    path: list[str] = field(default_factory=list)

    def notify(self, notice: Notice) -> None:
        if notice.kind == "enter" and notice.execution_id == EXECUTION:
            self.path.append(notice.node)


@pytest.fixture
def expected(name: str) -> dict[str, Any]:
    data = read_yaml(EXPECTED / f"{name}.yml")
    return {"input": {}, "children": {}, "signals": {}, "sweep": 9, "files": {}, **data}


@pytest.fixture
def model(copied: Path) -> Iterator[ScriptedModel | None]:
    script = find_project(copied).script
    if script is None:
        yield None
        return
    with ScriptedModel(Script.from_file(script), remember=True) as running:
        yield running


@pytest.fixture
def scenario(copied: Path, model: ScriptedModel | None, expected: dict[str, Any]) -> Scenario:
    project = find_project(copied)

    def machine(clock: Clock) -> Machine:
        made = flat.load(project.machine, hooks=project.registry())
        if model is not None:
            said = {"provider": "openai", "base_url": model.base_url, "api_key": "none"}
            made.make_agent = lambda name, config: litellm_agent(name, config, overrides=said)
            made.model = said
        return made

    return Scenario(
        machine=machine, input={**project.input, **expected["input"]}, signals=expected["signals"],
        max_steps=project.max_steps, unordered=bool(expected["children"]),
    )  # fmt: skip


async def through(scenario: Scenario, runtime: Runtime) -> Outcome:
    """Run it to its end, answering whatever it waits for."""
    machine = scenario.machine(runtime.clock)
    outcome = await runtime.start(machine, scenario.input, execution_id=EXECUTION)
    left = dict(scenario.signals)
    while outcome.status == "waiting":
        (channel,) = outcome.waiting_on
        await runtime.signal(channel, left.pop(channel))
        outcome = await runtime.resume(EXECUTION, machine)
    assert not left, f"nobody waited for {[*left]}"
    return outcome


def test_every_example_is_expected_to_do_something() -> None:
    assert sorted({*RUNNABLE, *OWN_TESTS}) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_is_short_and_shows_the_picture_and_a_command(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert shown(EXAMPLES / name) == drawn(EXAMPLES / name), "python tests/examples/graphs.py draws it"
    words = text.partition("```mermaid")[0].rstrip().splitlines()
    assert words[0].startswith("# ")
    assert len(words) <= MOST_LINES
    assert any(line.startswith("    flat ") for line in words)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_without_a_warning(name: str, commands: Commands) -> None:
    said = commands(EXAMPLES.parent, ["validate", "--strict", f"examples/{name}"])
    assert said.code == (3 if name in WARNED else 0), said.text
    assert WARNED.get(name, "") in said.text


@pytest.mark.anyio
@pytest.mark.parametrize("name", RUNNABLE)
async def test_it_comes_to_its_output_on_its_path(scenario: Scenario, expected: dict[str, Any]) -> None:
    walk, clock = Walk(), VirtualClock()
    async with Runtime(MemoryStore(), clock=clock, observers=[walk]) as runtime:
        outcome = (await through(scenario, runtime)).raise_for_failure()
        family = await runtime.list()
    assert outcome.status == "done"
    assert outcome.output == expected["output"]
    assert walk.path == expected["path"]
    done = Counter(one.name for one in family if one.execution_id != EXECUTION and one.status == "done")
    assert done == expected["children"]
    assert files_left(expected["files"]) == expected["files"]


@pytest.mark.anyio
@pytest.mark.parametrize("name", RUNNABLE)
async def test_it_dies_and_is_resumed_with_the_same_result(
    scenario: Scenario, expected: dict[str, Any]
) -> None:
    if expected["sweep"]:
        report = await sweep(scenario, memory_places(), every=expected["sweep"])
        report.check()
        assert report.points > 1


@pytest.mark.parametrize("name", RUNNABLE)
def test_its_process_is_killed_and_another_goes_on(
    name: str, copied: Path, expected: dict[str, Any], commands: Commands
) -> None:
    resume, left = ["resume", EXECUTION, "."], dict(expected["signals"])
    given = ["--input", json.dumps(expected["input"])]
    said = commands(copied, ["run", ".", "--id", EXECUTION, "--plain", *given], die_at=expected["kill_at"])
    while said.code == 4:  # it waits, and has not come to where it is killed yet
        answer(commands, copied, said.text, left)
        said = commands(copied, [*resume, "--plain"], die_at=expected["kill_at"])
    assert said.code == -9, said.text
    said = commands(copied, [*resume, "--json"])
    while said.code == 4:
        answer(commands, copied, said.text, left)
        said = commands(copied, [*resume, "--json"])
    assert said.code == 0, said.text
    result = json.loads(said.text.splitlines()[-1])
    assert (result["event"], result["output"]) == ("result", expected["output"])


def files_left(names: Iterable[str]) -> dict[str, str]:
    return {name: Path(name).read_text(encoding="utf-8") for name in names}


def answer(commands: Commands, folder: Path, said: str, left: dict[str, Any]) -> None:
    """Send what it has just said that it waits for."""
    channel = next(channel for channel in left if channel in said)
    sent = commands(folder, ["signal", channel, json.dumps(left.pop(channel))])
    assert sent.code == 0, sent.text


# -- the commands around them ----------------------------------------------------------------


def test_all_are_listed(commands: Commands, tmp_path: Path) -> None:
    listed = json.loads(commands(tmp_path, ["examples", "--json"]).text)
    assert [one["name"] for one in listed] == NAMES
    assert all(one["about"] and one["command"].startswith("flat ") for one in listed)
    assert "flat init --from NAME DIR" in commands(tmp_path, ["examples"]).text
    assert LIST.read_text(encoding="utf-8") == all_listed(), "python tests/examples/graphs.py writes it"


def test_the_list_says_which_run_on_the_small_model_of_this_machine(
    commands: Commands, tmp_path: Path
) -> None:
    said = json.loads(commands(tmp_path, ["examples", "--json"]).text)
    listed = {one["name"]: (one["model"], one["local"]) for one in said}
    assert listed["writer_critic"] == listed["support_triage_json"] == listed["ticket_triage"] == (True, True)
    assert listed["tree_demo"] == listed["helloworld"] == listed["coding_agent_cli"] == (True, False)
    assert listed["listener_os"] == listed["dfss_pipeline"] == listed["distributed_worker"] == (False, False)
    table = commands(tmp_path, ["examples"]).text
    assert re.search(r"^writer_critic +yes +Two agents", table, re.MULTILINE)
    assert re.search(r"^tree_demo +no +The smallest", table, re.MULTILINE)
    assert re.search(r"^listener_os +no model +A machine", table, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_one_is_copied_with_its_commands_as_typed_there(
    name: str, commands: Commands, tmp_path: Path
) -> None:
    said = commands(tmp_path, ["init", "--from", name, "mine"])
    assert said.code == 0, said.text
    assert f"from the example {name}" in said.text
    assert "run it: cd mine && flat " in said.text
    assert f"examples/{name}" not in (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert commands(tmp_path, ["validate", "mine"]).code == 0


def test_what_is_there_is_not_overwritten(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert commands(tmp_path, ["init", "mine"]).code == 0
    again = commands(tmp_path, ["init", "mine"])
    assert (again.code, again.text) == (2, "error: mine is not empty; name a folder that is new or empty\n")
    (tmp_path / "file").touch()
    assert "file is a file" in commands(tmp_path, ["init", "file"]).text
    unknown = commands(tmp_path, ["init", "--from", "writer-critic", "other"])
    assert 'did you mean "writer_critic"?' in unknown.text
    assert not (tmp_path / "other").exists()


def test_they_are_in_the_wheel(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(EXAMPLES.parent)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(one) for one in archive.namelist()}
        size = sum(i.compress_size for i in archive.infolist() if i.filename.startswith("flat/examples/"))
        archive.extractall(tmp_path / "site")
    for name in NAMES:
        assert Path("flat/examples", name, "README.md") in names
    assert not [one for one in names if one.suffix in (".pyc", ".db")]
    assert size < 500_000
    said = subprocess.run(
        [sys.executable, "-m", "flat.cli", "examples", "--json"], capture_output=True, check=True,
        cwd=tmp_path / "site", env={"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert [Path(one["folder"]).parent for one in json.loads(said.stdout)] == [
        tmp_path / "site" / "flat" / "examples"
    ] * len(NAMES)
