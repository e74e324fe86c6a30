"""The examples that have a profile `local`, on the real small model: they come to their end, whatever it says.

What it says is not looked at, and may differ between processors, as may the way an example goes. So only what holds
for any answer is asserted: that it ends well, and that its output is what the schemas of its agents allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest

import flat
from flat.agents.local import serve
from flat.cli.examples import examples
from flat.cli.project import find_project

pytestmark = pytest.mark.real_model

OWN_TESTS = {"ticket_triage"}
PAPER = "Tea\n\n## Results\nA lid kept it warm for 23 minutes, not for 11.\n"
LOG = "Day 1. 54.1 N. Fog.\n\nDay 2. 54.2 N. Whales off the bow: 3 fin whales."
SHORTENED: Mapping[str, Mapping[str, Any]] = {
    "character_card": {"lines": ["Good evening!"]},
    "gepa_self_optimizer": {
        "cases": [{"mail": "I want my money back.", "label": "refund"}],
        "most_rounds": 2,
    },
    "multi_paper_synthesizer": {
        "lid": "A lid adds 12 minutes.",
        "cup": "A wall adds 9.",
        "milk": "Milk adds 2.",
    },
    "parallelism": {"reviews": ["The tent kept us dry.", "Two of the pegs bent."]},
    "peering": {"cases": [{"customer": "Ben", "question": "Which cable does the box need?"}]},
    "research_paper_analysis": {"paper": PAPER},
    "rlm": {"text": LOG, "limit": 60},
    "story_writer": {"chapters": 1},
    "writer_critic": {"most_rounds": 1},
}
"""Inputs in place of those of the example, with which the model would be busy for long."""
SIGNALS = {"dynamic_agent": {"allowed": True}, "human-in-the-loop": {"approved": True}}
"""What a person says to an example that waits for one."""


def text(most: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, **more}


def texts(most: int, longest: int) -> dict[str, Any]:
    return {"type": "array", "maxItems": most, "items": text(longest)}


def number(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def mapping(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


CARD = mapping(name=text(40), looks=text(160), manner=text(160), greeting=text(160))
CATEGORY = {"enum": ["billing", "technical", "account", "other"]}
NOTHING = {"type": "null"}
OUTPUTS: Mapping[str, dict[str, Any]] = {
    "character_card": mapping(card=CARD, talk={"type": "array", "minItems": 3, "maxItems": 3, "items": text(300)}),
    "dynamic_agent": mapping(agent=text(40), answer={"anyOf": [text(300), NOTHING]}, designs=number(1, 3)),
    "error_handling": mapping(
        answer=text(200), answered_by={"const": "good"}, last_error=text(500, pattern="there is no file")
    ),
    "gepa_self_optimizer": mapping(
        prompt=text(300), right=number(0, 1), of={"const": 1}, scores={"type": "array", "maxItems": 2}
    ),
    "human-in-the-loop": mapping(notice=text(200), rounds={"const": 1}),
    "multi_paper_synthesizer": mapping(answer=text(400), open=text(120), rounds=number(1, 2)),
    "parallelism": mapping(
        moods={"type": "array", "minItems": 2, "maxItems": 2, "items": {"enum": ["happy", "unhappy"]}},
        summary=text(200), reply=text(200),
    ),
    "peering": mapping(answers=mapping(Ben=mapping(answer=text(200)))),
    "research_paper_analysis": mapping(
        title={"const": "Tea"}, report=text(600), drafts=number(1, 3), missing=texts(3, 120)
    ),
    "rlm": mapping(answer=text(300), found=texts(6, 100), unread={"const": 0}),
    "story_writer": mapping(title=text(60), story=text(600)),
    "support_triage_json": {
        "anyOf": [
            mapping(to={"const": "customer"}, category=CATEGORY, reply=text(300)),
            mapping(to={"const": "person"}, category=CATEGORY, urgent={"type": "boolean"}),
        ]
    },
    "writer_critic": mapping(tagline=text(60), score=number(1, 10), rounds={"const": 1}),
}  # fmt: skip
"""What can come of each example, as a JSON Schema."""


@pytest.fixture(scope="module", autouse=True)
def model() -> Iterator[None]:
    with serve():
        yield


def test_every_example_that_is_listed_as_local_is_run_here() -> None:
    assert {one.name for one in examples() if one.local} == {*OUTPUTS, *OWN_TESTS}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_small_model_leads_it_to_its_end(name: str, copied: Path) -> None:
    output = anyio.run(output_of, name, copied)
    jsonschema.validate(output, OUTPUTS[name])


async def output_of(name: str, folder: Path) -> Any:
    project = find_project(folder)
    machine = flat.load(project.machine, hooks=project.registry(), profile="local")
    async with flat.Runtime(flat.MemoryStore()) as runtime:
        given = {**project.input, **SHORTENED.get(name, {})}
        outcome = await runtime.start(machine, given, execution_id=name)
        while outcome.status == "waiting":
            (channel,) = outcome.waiting_on
            await runtime.signal(channel, SIGNALS[name])
            outcome = await runtime.resume(name, machine)
    return outcome.raise_for_failure().output
