"""What an earlier release wrote must load and finish: executions as bytes, kept in `golden/snapshots`.

A file holds the program, bodies and blobs of an execution that is not finished, and what it comes to.
`python tests/core/test_golden_snapshots.py` writes those that are not there; one that is there never changes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from flat.bindings import standard_types
from flat.core.advance import advance
from flat.core.codec import Codec
from flat.core.effects import AwaitSignal, CallAgent, RunAction, Sleep
from flat.core.events import Done, Failed, Reply, Resumed, Spent
from flat.core.failure import Failure
from flat.core.program_codec import program_from_data, program_to_data
from flat.core.snapshot import Snapshot

FOLDER = Path(__file__).parents[1] / "golden" / "snapshots"
CODEC = Codec(standard_types())
AT = 2000.0


def world(effect: Any, snapshot: Snapshot) -> Done | Failed:
    """Answers by the effect alone."""
    match effect:
        case RunAction():
            n = effect.context["n"] + 1
            context = {
                **effect.context,
                "n": n,
                "list": [*effect.context["list"], {"n": n, "odd": {1, (2, b"x")}}],
            }
            return Done(effect.id, {**context, "$key": "\ud800", "text": "x" * 20_000, "big": 2**70}, AT)
        case CallAgent() if effect.id.endswith("/call"):
            return Failed(effect.id, Failure(type="Busy", message="busy", retryable=True), AT, Spent(calls=1))
        case CallAgent():
            return Done(effect.id, Reply(payload={"a": [1]}, spent=Spent(calls=1, cost=0.5)), AT)
        case AwaitSignal():
            return Done(effect.id, {"who": "Ann"}, AT)
        case Sleep():
            return Done(effect.id, None, effect.until)
    raise AssertionError(effect)


def finish(program: Any, snapshot: Snapshot) -> Snapshot:
    step = advance(program, snapshot, Resumed(AT))
    while step.effects:
        step = advance(program, step.snapshot, world(step.effects[0], step.snapshot))
    return step.snapshot


def ended(snapshot: Snapshot) -> Any:
    return CODEC.plain(
        [snapshot.status, snapshot.output, dict(snapshot.root.context), snapshot.steps, snapshot.spent.calls],
        "end",
        None,
    )


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda f: f.stem)
def test_what_was_stored_loads_and_finishes(file: Path) -> None:
    data = orjson.loads(file.read_bytes())
    blobs = {name: text.encode() for name, text in data["blobs"].items()}
    first, *rest = data["bodies"]
    snapshot = CODEC.snapshot(first.encode(), blobs)
    for body in rest:
        snapshot = CODEC.applied(snapshot, body.encode(), blobs)
    program = program_from_data(data["program"])
    assert ended(finish(program, snapshot)) == data["end"]


def test_there_are_golden_snapshots() -> None:
    assert len(list(FOLDER.glob("1-*.json"))) >= 5


def write() -> None:
    """Stop a machine that uses every op at each of its effects, and keep what is stored then."""
    sys.path.insert(0, str(Path(__file__).parent))
    from small import final, go, node, program, started

    from flat.core.ops import Action, Assign, Call, Wait
    from flat.core.strategies import Retry
    from flat.core.template import Template

    of = program(
        node("act", Action(action="x"), go(("context.n >= 2", "ask"), (None, "act")), timeout=60.0),
        node(
            "ask",
            Call(agent="a", strategy=Retry(backoffs=(5.0,))),
            Assign(entries=(("answer", Template("{{ output.a }}", None, True)),)),
            go((None, "wait")),
        ),
        node("wait", Wait(channel=Template("go/{{ context.n }}", None, True)), go((None, "end"))),
        final(),
        context={"n": 0, "list": []},
    )
    step = started(of)
    bodies, blobs = [CODEC.first(step.snapshot)], dict[str, bytes]()
    number = 0
    while step.effects:
        number += 1
        target = FOLDER / f"1-{number}-{step.effects[0].kind}.json"
        data = {
            "program": program_to_data(of),
            "bodies": [body.decode() for body in bodies],
            "blobs": {name: blob.decode() for name, blob in blobs.items()},
            "end": ended(finish(of, step.snapshot)),
        }
        if not target.exists():
            target.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
        before = step.snapshot
        step = advance(of, before, world(step.effects[0], before))
        body, more = CODEC.delta(before, step.snapshot)
        bodies.append(body)
        blobs |= more


if __name__ == "__main__":
    write()
