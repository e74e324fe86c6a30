"""Where else the examples may end: by another input, or because nobody answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import flat
from flat import MemoryStore, Runtime
from flat.cli.project import find_project
from flat.testing.agents import ScriptedAgent
from flat.testing.clock import VirtualClock

from .conftest import Commands

WEEK = 7 * 24 * 3600


@pytest.mark.parametrize(
    ("name", "given", "output"),
    [
        (
            "support_triage_json",
            {"ticket": "Your service is down and we cannot work!"},
            {"to": "person", "category": "technical", "urgent": True},
        ),
        ("support_triage_json", {"ticket": "Hello?"}, {"to": "person", "category": "other", "urgent": False}),
        (
            "writer_critic",
            {"most_rounds": 1},
            {"tagline": "Be heard on every ride.", "score": 4, "rounds": 1},
        ),
        ("peering", {"cases": []}, {"answers": {}}),
        ("parallelism", {"reviews": []}, None),
    ],
)
def test_another_input_leads_elsewhere(
    name: str, given: dict[str, Any], output: Any, copied: Path, commands: Commands
) -> None:
    said = commands(copied, ["run", ".", "--json", "--input", json.dumps(given)])
    assert said.code == 0, said.text
    came = json.loads(said.text.splitlines()[-1])["output"]
    assert came == output if output is not None else came["moods"] == []


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["human-in-the-loop"])
async def test_a_notice_that_nobody_looks_at_for_a_week_is_not_published(copied: Path) -> None:
    project, clock = find_project(copied), VirtualClock()
    machine = flat.load(project.machine, agents={"writer": ScriptedAgent({"text": "The lift rests."})})
    async with Runtime(MemoryStore(), clock=clock) as runtime:
        outcome = await runtime.start(machine, project.input, execution_id="notice")
        assert (outcome.status, outcome.waiting_on) == ("waiting", ("review/notice/1",))
        await clock.sleep_until(clock.now() + WEEK)
        outcome = await runtime.resume("notice", machine)
    assert (outcome.status, outcome.output) == ("done", {"notice": None, "rounds": 1})


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["mdap"])
async def test_an_illegal_move_that_is_voted_for_loses(copied: Path) -> None:
    machine = flat.load(find_project(copied).machine, agents={"solver": ScriptedAgent("from b to c")})
    async with Runtime(MemoryStore()) as runtime:
        outcome = await runtime.start(machine, {"disks": 2})
    assert outcome.output == {"moves": ["bc"], "illegal": "bc"}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["error_handling"])
async def test_when_all_fail_the_run_ends_in_good_order(copied: Path) -> None:
    down = ScriptedAgent(flat.AgentFailed("no credit", code="auth_error"))
    machine = flat.load(find_project(copied).machine, agents={"good": down, "cheap": down})
    async with Runtime(MemoryStore()) as runtime:
        outcome = await runtime.start(machine, {"question": "Why?"})
    assert outcome.status == "done"
    assert outcome.output["answer"] is None
    assert "no credit" in outcome.output["error"]
