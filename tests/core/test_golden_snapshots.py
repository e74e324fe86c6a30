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
from flat.core.effects import AwaitSignal, CallAgent, RunAction, RunTool, Sleep, StartChild
from flat.core.events import Done, Ended, Failed, Reply, Resumed, Spent, Told
from flat.core.failure import Failure
from flat.core.program import Program
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
        case CallAgent() if effect.agent == "talker":
            return Done(effect.id, talk(effect), AT)
        case CallAgent() if effect.id.endswith("/call"):
            return Failed(effect.id, Failure(type="Busy", message="busy", retryable=True), AT, Spent(calls=1))
        case CallAgent():
            return Done(effect.id, Reply(payload={"a": [1]}, spent=Spent(calls=1, cost=0.5)), AT)
        case AwaitSignal():
            return Done(effect.id, {"who": "Ann"}, AT)
        case Sleep():
            return Done(effect.id, None, effect.until)
        case RunTool():
            return Done(effect.id, Told(content=f"{effect.tool} of {effect.call_id}"), AT)
        case StartChild() if effect.id.endswith("1"):
            return Failed(effect.id, Failure(type="Boom", message="it broke"), AT, Spent(calls=2, cost=0.25))
        case StartChild():
            return Done(effect.id, Ended(output=dict(effect.input), spent=Spent(calls=1)), AT)
    raise AssertionError(effect)


def talk(effect: CallAgent) -> Reply:
    """Three turns with tools, then a text; or a vote, in which the second answer cannot be counted."""
    turn, spent = effect.id.rpartition(".")[2], Spent(calls=1, cost=0.125)
    if turn in ("model0", "model1"):
        calls = [{"id": f"{turn}{n}", "name": "look", "arguments": {"n": n}} for n in range(2)]
        return Reply(payload={}, spent=spent, finish_reason="tool_use", tool_calls=tuple(calls), prompt="go")
    if turn == "model2":
        return Reply(payload={"content": "seen"}, spent=spent, text="seen", finish_reason="stop")
    text = "" if turn == "1" else "yes"
    return Reply(payload={"content": text}, spent=spent, text=text)


def finish(program: Any, snapshot: Snapshot) -> Snapshot:
    step = advance(program, snapshot, Resumed(AT))
    asked = list(step.effects)
    while asked:
        effect = asked.pop(0)
        step = advance(program, step.snapshot, world(effect, step.snapshot))
        asked += step.effects
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
    names = {file.stem.split("-")[1] for file in FOLDER.glob("1-*.json")}
    assert names >= {"basic", "loop", "family", "votes"}


def programs() -> dict[str, Program]:
    """Machines that use every op."""
    sys.path.insert(0, str(Path(__file__).parent))
    from small import final, go, node, program

    from flat.core.ops import Action, Assign, Call, ChildCall, Children, Converse, Guardrails, Launch, Wait
    from flat.core.strategies import Retry, Sample, Vote
    from flat.core.template import Template, compile_value

    basic = program(
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
    loop = program(
        node("talk", Converse(agent="talker", limits=Guardrails(max_turns=5), on_calls=False, on_result=False),
             go((None, "end"), interrupted=True)),
        final(),
    )  # fmt: skip
    got = Assign(entries=(("got", Template("output")),))
    family = program(
        node("launch", Launch(machines=("c",)), go((None, "each"))),
        node(
            "each",
            Children(
                calls=(ChildCall(machine="c"),), foreach=Template("context.items", None, True), as_="it",
                input=compile_value({"v": "{{ it }}"}, native=True), item_key=Template("k{{ it }}", None, True),
                at_once=2,
            ),
            got, go((None, "end")),
        ),
        final(),
        context={"items": [1, 2, 3]},
    )  # fmt: skip
    votes = program(
        node("vote", Call(agent="talker", strategy=Vote(k_margin=2)), got, go((None, "sample"))),
        node("sample", Call(agent="talker", strategy=Sample(n=2)), go((None, "end"))),
        final(),
    )
    return {"basic": basic, "loop": loop, "family": family, "votes": votes}


def write() -> None:
    """Stop each machine at each of its effects, and keep what is stored then."""
    for name, of in programs().items():
        write_one(name, of)


def write_one(name: str, of: Program) -> None:
    from small import started

    step = started(of)
    bodies, blobs = [CODEC.first(step.snapshot)], dict[str, bytes]()
    asked, number = list(step.effects), 0
    while asked:
        number += 1
        effect = asked.pop(0)
        target = FOLDER / f"1-{name}-{number:02}-{effect.kind}.json"
        data = {
            "program": program_to_data(of),
            "bodies": [body.decode() for body in bodies],
            "blobs": {digest: blob.decode() for digest, blob in blobs.items()},
            "end": ended(finish(of, step.snapshot)),
        }
        if not target.exists():
            target.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
        before = step.snapshot
        step = advance(of, before, world(effect, before))
        asked += step.effects
        body, more = CODEC.delta(before, step.snapshot)
        bodies.append(body)
        blobs |= more


if __name__ == "__main__":
    write()
