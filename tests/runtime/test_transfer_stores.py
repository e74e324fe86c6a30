"""A run whose process was killed goes on in another store, of every kind, and comes to the same end."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import flat
from flat import HooksRegistry, Machine, MachineHooks, MemoryStore, Runtime, SQLiteStore
from flat.backends import open_store
from flat.backends.protocols import CheckpointStore
from flat.backends.sweeping import Sweepable
from flat.runtime.doctor import Doctor
from flat.runtime.prune import Wanted, plan, prune
from flat.runtime.transfer import everything, export_runs, families, import_runs
from flat.testing.store_servers import StoreServers

pytestmark = pytest.mark.anyio

KINDS = ["memory", "file", "sqlite", "redis", "postgres", "dynamodb", "s3"]
LONG = "a long text " * 2000
CHILD: dict[str, Any] = {
    "name": "child",
    "hooks": "counting",
    "context": {"n": "{{ input.n }}", "note": LONG},
    "states": {
        "first": {"type": "initial", "action": "add", "transitions": [{"to": "second"}]},
        "second": {"action": "add", "transitions": [{"to": "end"}]},
        "end": {"type": "final", "output": {"n": "{{ context.n }}", "size": "{{ context.note | length }}"}},
    },
}
TOP: dict[str, Any] = {
    "name": "top",
    "hooks": "counting",
    "settings": {"native_types": True},
    "machines": {"child": {"spec": "flatmachine", "spec_version": "4.2.1", "data": CHILD}},
    "context": {"n": 1, "all": []},
    "states": {
        "before": {"type": "initial", "action": "add", "transitions": [{"to": "below"}]},
        "below": {
            "foreach": "{{ [context.n, context.n * 10] }}", "as": "item", "machine": "child",
            "input": {"n": "{{ item }}"},
            "output_to_context": {"all": "{{ output }}"}, "transitions": [{"to": "after"}],
        },
        "after": {"action": "add", "transitions": [{"to": "end"}]},
        "end": {"type": "final", "output": {"n": "{{ context.n }}", "all": "{{ context.all }}"}},
    },
}  # fmt: skip


class Counting(MachineHooks):
    """Writes down each action; `killed_at` is the line after which the process is killed."""

    ledger: Path = Path()
    killed_at = 0

    def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        with self.ledger.open("a") as ledger:
            ledger.write(f"{context['n']}\n")
        if len(self.ledger.read_text().splitlines()) == self.killed_at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        context["n"] = int(context["n"]) + 1
        context["text"] = LONG
        return context


def counting(ledger: Path, killed_at: int = 0) -> Machine:
    hooks = type("Here", (Counting,), {"ledger": ledger, "killed_at": killed_at})
    config = {"spec": "flatmachine", "spec_version": "4.2.1", "data": TOP}
    loaded: Machine = flat.load(config=config, hooks=HooksRegistry({"counting": hooks}))
    return loaded


def live_and_die(folder: Path, killed_at: int) -> None:
    """What the process does that is killed."""
    import anyio

    async def live() -> None:
        async with Runtime(f"sqlite:///{folder}/source.db") as runtime:
            await runtime.start(counting(folder / "ledger", killed_at), execution_id="top")

    anyio.run(live)


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, servers: StoreServers) -> CheckpointStore:
    return open_store("memory:" if request.param == "memory" else servers.url(request.param))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """The output of a run that nobody kills, and what it wrote down."""
    import anyio

    ledger = tmp_path_factory.mktemp("undisturbed") / "ledger"

    async def run() -> Any:
        async with Runtime(MemoryStore()) as runtime:
            return (await runtime.start(counting(ledger))).output

    return anyio.run(run), ledger.read_text().splitlines()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """The export of a store whose process was killed in the third action of six; and its ledger."""
    import anyio

    folder = tmp_path_factory.mktemp("killed")
    command = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_transfer_stores as t; "
    )
    command += f"from pathlib import Path; t.live_and_die(Path({str(folder)!r}), 3)"
    died = subprocess.run([sys.executable, "-c", command], check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr

    async def exported() -> bytes:
        out, source = io.BytesIO(), SQLiteStore(folder / "source.db")
        told = await export_runs(source, await families(source, ["top"]), out)
        assert told.executions == 3
        assert (told.driven, told.missing) == ([], [])
        await source.close()
        return out.getvalue()

    return anyio.run(exported), (folder / "ledger").read_text()


async def test_a_killed_run_ends_in_another_store_as_it_would_have(
    target: CheckpointStore,
    killed: tuple[bytes, str],
    undisturbed: tuple[Any, list[str]],
    tmp_path: Path,
) -> None:
    file, ledger = killed
    output, written = undisturbed
    (tmp_path / "ledger").write_text(ledger)
    told = await import_runs(target, io.BytesIO(file))
    assert (told.executions, told.missing) == (3, [])
    out = io.BytesIO()
    await export_runs(target, await everything(target), out, whole=True)
    # What no store tells of itself is left out: the time of the export, and so the sums.
    assert out.getvalue().count(b"\n") == file.count(b"\n")
    async with Runtime(target) as runtime:
        outcome = await runtime.resume("top", counting(tmp_path / "ledger"))
    assert (outcome.status, outcome.output) == ("done", output)
    again = Counter((tmp_path / "ledger").read_text().splitlines())
    repeated = again - Counter(written)
    # Done again is what was in flight when the process died: one action of each of the two children at most.
    assert not Counter(written) - again
    assert 1 <= repeated.total() <= 2
    assert not repeated - Counter(ledger.splitlines()[1:])
    await target.close()


async def test_the_doctor_and_prune_know_what_came_in(
    target: CheckpointStore, killed: tuple[bytes, str], tmp_path: Path
) -> None:
    file, ledger = killed
    (tmp_path / "ledger").write_text(ledger)
    await import_runs(target, io.BytesIO(file))
    now = time.time()
    found = [finding async for finding in Doctor(target, now=now).findings()]
    assert {(finding.code, finding.severity) for finding in found} == {("stranded", "warning")}
    assert not (await plan(target, Wanted(), now=now)).families
    async with Runtime(target) as runtime:
        assert (await runtime.resume("top", counting(tmp_path / "ledger"))).status == "done"
    assert [finding async for finding in Doctor(target, now=now).findings()] == []
    doomed = await plan(target, Wanted(), now=now)
    assert [(family.top, len(family.members)) for family in doomed.families] == [("top", 3)]
    told = await prune(target, doomed, now=now)
    assert told.executions == 3
    assert [e async for e in target.find()] == []
    assert told.collected is not None
    if isinstance(target, Sweepable):
        assert (told.collected.programs, told.collected.refused) == (2, "")
        assert told.collected.blobs >= 1
        assert [*await target.kept("blob"), *await target.kept("config")] == []
    else:
        assert told.collected.refused
    await target.close()


async def test_from_any_store_to_any_other_nothing_changes(
    target: CheckpointStore, killed: tuple[bytes, str]
) -> None:
    await import_runs(target, io.BytesIO(killed[0]))
    there, back = io.BytesIO(), MemoryStore()
    await export_runs(target, await everything(target), there, whole=True)
    await import_runs(back, there)
    first = MemoryStore()
    await import_runs(first, io.BytesIO(killed[0]))
    assert [e.execution_id async for e in back.find()] == [e.execution_id async for e in first.find()]
    async for e in first.find():
        other = await back.get(e.execution_id)
        assert other is not None
        assert (other.status, other.seq, other.parent, other.program) == (
            e.status,
            e.seq,
            e.parent,
            e.program,
        )
        assert other.updated_at == pytest.approx(e.updated_at, abs=0.001)
        assert await back.bodies(e.execution_id) == await first.bodies(e.execution_id)
    await target.close()
