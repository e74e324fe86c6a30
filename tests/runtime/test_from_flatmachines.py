"""Executions of flatmachines come over from both of its layouts: readable, resumable, or told why not."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import flat
from flat import HooksRegistry, Machine, MachineHooks, MemoryStore, Runtime
from flat.runtime.doctor import Doctor
from flat.runtime.flatmachines_files import NotFlatmachines, open_source
from flat.runtime.from_flatmachines import Carried, convert
from flat.runtime.transfer import import_runs

pytestmark = pytest.mark.anyio
NOW = 1_800_000_000.0
HASH = "c" * 64
CONFIG: dict[str, Any] = {
    "spec": "flatmachine",
    "spec_version": "2.5.0",
    "data": {
        "name": "counter",
        "hooks": "counting",
        "context": {"n": 0, "items": []},
        "states": {
            "one": {"type": "initial", "action": "add", "transitions": [{"to": "two"}]},
            "two": {
                "action": "add",
                "transitions": [{"condition": "context.n >= 3", "to": "end"}, {"to": "ask"}],
            },
            "ask": {
                "wait_for": "inbox/{{ context.n }}",
                "output_to_context": {"said": "{{ output.said }}"},
                "transitions": [{"to": "end"}],
            },
            "end": {
                "type": "final",
                "output": {"n": "{{ context.n }}", "said": "{{ context.said | default('') }}"},
            },
        },
    },
}


def _layouts() -> ModuleType:
    name = "flatmachines_layouts"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


layouts = _layouts()
snapshot: Callable[..., dict[str, Any]] = layouts.snapshot


class Counting(MachineHooks):
    def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        context["n"] += 1
        return context


def counter() -> Machine:
    return flat.load(config=CONFIG, hooks=HooksRegistry({"counting": Counting}))


@pytest.fixture(params=["files", "tables"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return layouts.Files(tmp_path) if request.param == "files" else layouts.Tables(tmp_path)


def export(
    place: Any, machines: tuple[Machine, ...] | None = None, now: float = NOW
) -> tuple[Carried, io.BytesIO]:
    out = io.BytesIO()
    with closing(open_source(place.path)) as source:
        given = (counter(),) if machines is None else machines
        return convert(source, given, out, now=lambda: now), out


async def carried(place: Any, *machines: Machine, unnamed: bool = False) -> tuple[Carried, MemoryStore]:
    """All that could be carried over, in a store that the doctor finds nothing wrong with."""
    told, out = export(place, () if unnamed else machines or None)
    store = MemoryStore()
    await import_runs(store, out, now=lambda: NOW)
    findings = [finding async for finding in Doctor(store, now=NOW).findings()]
    assert [f for f in findings if f.severity == "error"] == []
    return told, store


def steps(place: Any, id_: str = "e", **last: Any) -> None:
    """A run up to state `two`, each checkpoint of it."""
    place.save(snapshot(id_, 0, "machine_start", "start", context={"items": []}))
    for event in ("state_enter", "execute"):
        place.save(snapshot(id_, 1, event, "one", context={"items": []}))
    place.save(snapshot(id_, 1, "state_exit", "one", context={"n": 1, "items": [1]}))
    for event in ("state_enter", "execute"):
        place.save(
            snapshot(
                id_, 2, event, "two", context={"n": 1, "items": [1, 2]}, total_api_calls=2, total_cost=0.5
            )
        )


async def resumed(store: MemoryStore, id_: str = "e", signal: Any = None) -> flat.Outcome:
    async with Runtime(store) as runtime:
        return await runtime.resume(id_, counter())


async def test_a_run_that_died_in_a_state_does_that_state_again(place: Any) -> None:
    steps(place)
    told, store = await carried(place)
    assert (told.running, told.done, told.parked, told.left) == (["e"], [], [], [])
    outcome = await resumed(store)
    assert (outcome.status, outcome.node) == ("waiting", "ask")
    assert outcome.context["n"] == 2
    assert outcome.waiting_on == ("inbox/2",)
    assert (outcome.spent.calls, outcome.spent.cost) == (2, 0.5)
    async with Runtime(store) as runtime:
        await runtime.signal("inbox/2", {"said": "yes"})
        last = await runtime.resume("e", counter())
    assert last.output == {"n": "2", "said": "yes"}
    assert last.steps == 5


async def test_its_history_can_be_looked_at(place: Any) -> None:
    steps(place)
    _, store = await carried(place)
    async with Runtime(store) as runtime:
        moments = [(s.steps, s.root.node, s.root.context["n"]) for _, s in await runtime.snapshots("e")]
        assert moments == [
            (0, "one", 0),
            (1, "one", 0),
            (1, "one", 0),
            (1, "one", 1),
            (2, "two", 1),
            (2, "two", 1),
        ]
        first = await runtime.inspect("e", at=0)
        last = await runtime.inspect("e")
        assert (last.at - first.at, "machine" in last.root.context) == (2.0, False)
        assert last.root.context["items"] == [1, 2]
        forked = await runtime.fork("e", at=4, set={"n": 9})
        assert (await runtime.resume(forked, counter())).status == "done"


async def test_storage_grows_with_the_changes_alone(place: Any) -> None:
    large = "x" * 20_000
    for step in range(1, 30):
        context = {"large": large, "items": list(range(step))}
        place.save(snapshot("e", step, "execute", "one", context=context))
    _, out = export(place)
    assert len(out.getvalue()) < 3 * len(large)


async def test_one_that_had_not_entered_its_first_state_begins_there(place: Any) -> None:
    place.save(snapshot("e", 0, "machine_start", "start", context={"items": []}))
    _, store = await carried(place)
    outcome = await resumed(store)
    assert (outcome.node, outcome.context["n"]) == ("ask", 2)


async def test_one_that_had_left_a_state_does_not_run_it_twice(place: Any) -> None:
    place.save(snapshot("e", 3, "state_exit", "two", context={"n": 2}))
    told, store = await carried(place)
    assert told.notes == [("e", 'goes on after state "two", whose on_state_exit is not run')]
    outcome = await resumed(store)
    assert (outcome.node, outcome.context["n"]) == ("ask", 2)


async def test_one_that_is_over_is_read_and_never_run(place: Any) -> None:
    steps(place)
    place.save(snapshot("e", 3, "state_exit", "end", context={"n": 3}, output={"n": 3}))
    place.save(snapshot("e", 4, "machine_end", "end", context={"n": 3}, output={"n": 3, "said": "bye"}))
    told, store = await carried(place)
    assert told.done == ["e"]
    outcome = await resumed(store)
    assert (outcome.status, outcome.output) == ("done", {"n": 3, "said": "bye"})
    assert (outcome.node, outcome.context["n"]) == ("end", 3)


async def test_one_that_had_left_its_final_state_is_over(place: Any) -> None:
    place.save(snapshot("e", 3, "state_exit", "end", context={"n": 3}, output={"n": 3}))
    told, store = await carried(place)
    assert told.done == ["e"]
    assert "on_machine_end" in told.notes[0][1]
    assert (await resumed(store)).output == {"n": 3}


async def test_a_parked_one_is_woken_by_a_signal_on_its_channel(place: Any) -> None:
    place.save(snapshot("e", 3, "waiting", "ask", context={"n": 7}, waiting_channel="inbox/7"))
    told, store = await carried(place)
    assert told.parked == ["e"]
    found = await store.get("e")
    assert found is not None
    assert (found.status, found.channels) == ("waiting", ("inbox/7",))
    async with Runtime(store, machines={"counter": counter()}) as runtime:
        assert [e.execution_id for e in await store.ready(now=NOW)] == []
        await runtime.signal("inbox/7", {"said": "go"})
        assert [e.execution_id for e in await store.ready(now=NOW)] == ["e"]
        await runtime.dispatcher().dispatch_once()
        assert (await runtime.inspect("e")).status == "done"
        assert (await runtime.context("e"))["said"] == "go"


async def test_the_config_kept_with_it_will_do(place: Any) -> None:
    place.config(HASH, yaml.safe_dump(CONFIG))
    place.save(snapshot("e", 1, "execute", "one", context={"items": []}, config_hash=HASH))
    told, store = await carried(place, unnamed=True)
    assert told.running == ["e"]
    async with Runtime(store, machines={"counter": counter()}) as runtime:
        assert (await runtime.resume("e")).node == "ask"


async def test_without_any_config_what_is_over_is_read_and_the_rest_is_told(place: Any) -> None:
    steps(place, "lost")
    place.save(snapshot("over", 4, "machine_end", "end", output={"n": 3}))
    place.config("d" * 64, "data: [unclosed")
    place.save(snapshot("damaged", 1, "execute", "one", config_hash="d" * 64))
    told, store = await carried(place, unnamed=True)
    assert told.done == ["over"]
    assert [id_ for id_, _ in told.left] == ["damaged", "lost"]
    assert all("--machine FILE" in why for _, why in told.left)
    async with Runtime(store) as runtime:
        assert (await runtime.inspect("over")).output == {"n": 3}


async def test_what_cannot_be_carried_is_told(place: Any) -> None:
    place.save(snapshot("gone", 1, "execute", "nowhere"))
    place.raw("broken/step_000001_execute.json", b"{")
    place.point("broken", "broken/step_000001_execute.json")
    place.point("pointless", "pointless/step_000009_execute.json")
    place.save(snapshot("unpointed", 1, "execute", "one"), latest=False)
    place.save(snapshot("e", 1, "tool_call", "one", tool_loop_state={"chain": [], "turns": 3}, pending_launches=[
        {"execution_id": "x", "machine": "helper", "input": {}, "launched": False}]))  # fmt: skip
    told, store = await carried(place)
    why = dict(told.left)
    assert why.keys() == {"gone", "broken", "pointless", "unpointed"}
    assert 'state "nowhere"' in why["gone"]
    assert "cannot be read" in why["broken"]
    assert "missing" in why["pointless"]
    assert "no newest checkpoint" in why["unpointed"]
    assert told.notes == [
        ("e", 'its launch of "helper" was not carried over'),
        ("e", 'the tool loop of state "one" begins again; 3 turns of it are lost'),
    ]
    assert repr(store) == "MemoryStore(1 executions)"


async def test_a_damaged_moment_of_the_past_does_not_keep_it(place: Any) -> None:
    steps(place)
    place.raw("e/step_000001_execute.json", b"\xff")
    told, store = await carried(place)
    assert told.running == ["e"]
    assert "history" in told.notes[0][1]
    assert (await resumed(store)).node == "ask"


async def test_launched_children_go_on_by_themselves(place: Any) -> None:
    intent = {"execution_id": "child", "machine": "counter", "input": {}, "launched": True}
    place.save(snapshot("top", 2, "execute", "two", pending_launches=[intent]))
    place.save(snapshot("child", 1, "execute", "one", parent_execution_id="top"))
    _, store = await carried(place)
    async with Runtime(store) as runtime:
        child = await runtime.inspect("child")
    assert (child.parent, child.launched) == ("top", True)


async def test_hostile_ids_and_keys_change_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(snapshot("e", 1, "execute", "one")))
    place = layouts.Files(tmp_path)
    place.save(snapshot("a/b", 1, "execute", "one"))
    place.point("evil", "../secret.json")
    told, store = await carried(place)
    assert told.running == ["a/b"]
    assert [id_ for id_, _ in told.left] == ["evil"]
    assert await store.get("a/b") is not None


# -- what only the tables have ------------------------------------------------------------------------


async def test_signals_come_along_in_their_order(tmp_path: Path) -> None:
    place = layouts.Tables(tmp_path)
    for number, data in enumerate(('{"said": "a"}', '{"said": "b"}', "{broken")):
        place.execute(
            "INSERT INTO signals VALUES (?, 'inbox/7', ?, ?)", f"s{number}", data, layouts.moment(number)
        )
    place.execute("INSERT INTO work_pool (item_id, pool_name, data) VALUES ('w', 'p', '{}')")
    place.save(snapshot("e", 3, "waiting", "ask", context={"n": 7}, waiting_channel="inbox/7"))
    told, store = await carried(place)
    assert [(s.signal_id, json.loads(s.body)) for s in await store.signals("inbox/7")] == [
        ("s0", {"said": "a"}),
        ("s1", {"said": "b"}),
    ]
    assert [id_ for id_, _ in told.left] == ["s2"]
    assert told.notes == [("", "1 jobs wait in its work pools; put them into a pool of flat")]
    assert [e.execution_id for e in await store.ready(now=NOW)] == ["e"]


async def test_what_is_being_driven_there_stays_there(tmp_path: Path) -> None:
    place = layouts.Tables(tmp_path)
    for id_, until in (("driven", NOW + 60), ("left", NOW - 60)):
        place.save(snapshot(id_, 1, "execute", "one"))
        place.execute(
            "INSERT INTO execution_leases (execution_id, owner_id, lease_until) VALUES (?, 'worker-7', ?)",
            id_,
            int(until),
        )  # fmt: skip
    told, _ = await carried(place)
    assert told.running == ["left"]
    assert told.left[0][0] == "driven"
    assert "worker-7" in told.left[0][1]


def test_the_source_is_not_changed(tmp_path: Path) -> None:
    place = layouts.Tables(tmp_path)
    place.save(snapshot("e", 1, "execute", "one"))
    before = place.path.read_bytes()
    export(place)
    assert place.path.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"text", b"SQLite format 3\0"])
def test_other_things_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "other"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotFlatmachines, match=str(path)):
        open_source(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFlatmachines, match="holds no checkpoints"):
        open_source(tmp_path / "empty")


def test_a_store_of_ours_is_no_place_of_flatmachines(tmp_path: Path) -> None:
    flat.SQLiteStore(tmp_path / "flat.db")
    with pytest.raises(NotFlatmachines, match="no checkpoints of flatmachines"):
        open_source(tmp_path / "flat.db")
