"""Code written for the seed system finds its names here, and they do what they did there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flat
from flat import FlatMachine, Runtime

WAITS = {
    "spec": "flatmachine",
    "data": {
        "name": "waits",
        "context": {"x": 1},
        "states": {
            "ask": {"wait_for": "approvals", "transitions": [{"to": "done"}]},
            "done": {"type": "final", "output": {"x": "context.x"}},
        },
    },
}
LAUNCHES: dict[str, Any] = {
    "spec": "flatmachine",
    "data": {
        "machines": {
            "child": {"spec": "flatmachine", "data": {"states": {"s": {"type": "final", "output": {"r": 1}}}}}
        },
        "states": {
            "go": {"launch": "child", "launch_input": {"v": 7}, "transitions": [{"to": "done"}]},
            "done": {"type": "final"},
        },
    },
}
NAMES = """
    FlatMachine WaitingForSignal __version__ MachineHooks LoggingHooks MetricsHooks CompositeHooks WebhookHooks
    HooksRegistry DistributedWorkerHooks ExpressionEngine get_expression_engine ExecutionType DefaultExecution
    ParallelExecution RetryExecution MDAPVotingExecution get_execution_type RetryableError validate_flatmachine_config
    get_flatmachine_schema get_asset ValidationWarning setup_logging get_logger get_meter AgentMonitor track_operation
    ResultBackend InMemoryResultBackend LaunchIntent make_uri parse_uri get_default_result_backend
    reset_default_result_backend SubprocessInvoker launch_machine PersistenceBackend MemoryBackend LocalFileBackend
    SQLiteCheckpointBackend CheckpointManager MachineSnapshot clone_snapshot ConfigStore MemoryConfigStore
    LocalFileConfigStore SQLiteConfigStore config_hash ExecutionLock NoOpLock LocalFileLock SQLiteLeaseLock
    AgentExecutor AgentAdapter AgentResult AgentRef AgentAdapterContext AgentAdapterRegistry StreamEventCallback
    normalize_agent_ref coerce_agent_result build_rate_limit_windows build_rate_limit_state WorkerRegistration
    WorkerRecord WorkerFilter RegistrationBackend MemoryRegistrationBackend SQLiteRegistrationBackend
    create_registration_backend WorkItem WorkPool WorkBackend MemoryWorkBackend SQLiteWorkBackend create_work_backend
    Signal SignalBackend TriggerBackend MemorySignalBackend SQLiteSignalBackend NoOpTrigger FileTrigger SocketTrigger
    create_signal_backend create_trigger_backend SignalDispatcher MachineResumer ReferenceResolver ConfigStoreResumer
    ConfigFileResumer send_and_notify ToolResult ToolProvider SimpleToolProvider ToolLoopAgent
""".split()  # noqa: SIM905 - as a list it would be ninety lines


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    assert getattr(flat, name) is not None


# -- results --------------------------------------------------------------------------------------


def test_a_result_has_a_uri() -> None:
    assert flat.make_uri("e1") == "flatagents://e1/result"
    assert flat.parse_uri("flatagents://e1") == ("e1", "result")
    assert flat.parse_uri("flatagents://e1/a/b") == ("e1", "a/b")
    with pytest.raises(ValueError, match="Invalid FlatAgents URI: http://e1"):
        flat.parse_uri("http://e1")


@pytest.mark.anyio
async def test_results_of_a_machine_and_its_launched_children_are_found_by_uri() -> None:
    flat.reset_default_result_backend()
    machine = FlatMachine(config_dict=LAUNCHES, _execution_id="mother")
    assert await machine.execute() == {}
    results = flat.get_default_result_backend()
    assert await results.read(flat.make_uri("mother")) == {}
    assert await results.read(flat.make_uri("mother.0-1-launch")) == {"r": 1}
    assert await results.read(flat.make_uri("nobody"), block=False) is None
    with pytest.raises(TimeoutError, match="flatagents://nobody/result"):
        await results.read(flat.make_uri("nobody"), timeout=0.01)


@pytest.mark.anyio
async def test_an_invoker_is_given_what_is_launched() -> None:
    class Invoker:
        async def launch(self, caller: Any, config: Any, input: Any, execution_id: str) -> None:
            asked.append((input, execution_id))

    asked: list[Any] = []
    await FlatMachine(config_dict=LAUNCHES, _execution_id="m2", invoker=Invoker()).execute()
    assert asked == [({"v": 7}, "m2.0-1-launch")]


# -- persistence ----------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "local", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        return flat.MemoryBackend()
    if request.param == "local":
        return flat.LocalFileBackend(tmp_path / "checkpoints")
    return flat.SQLiteCheckpointBackend(tmp_path / "flat.db")


@pytest.mark.anyio
async def test_a_backend_is_a_store_and_a_view_of_it(backend: Any) -> None:
    machine = FlatMachine(config_dict=WAITS, persistence=backend)
    id_ = machine.execution_id
    assert await machine.execute() == {"_waiting": True, "_channel": "approvals"}
    assert await backend.list_execution_ids(event="waiting", waiting_channel="approvals") == [id_]
    assert await backend.list_execution_ids(event="machine_end") == []
    snapshot = await flat.CheckpointManager(backend, id_).load_latest()
    assert snapshot is not None
    assert (snapshot.current_state, snapshot.event, snapshot.waiting_channel) == (
        "ask",
        "waiting",
        "approvals",
    )
    assert await backend.load(f"{id_}/latest") == f"{id_}/step_000001_waiting.json".encode()
    async with Runtime(backend.store) as runtime:
        await runtime.signal("approvals", "yes")
    assert await machine.execute(resume_from=id_) == {"x": 1}
    assert await flat.CheckpointManager(backend, id_).load_status() == ("machine_end", "done")
    assert await backend.prune(max_count=0) == 1
    assert await backend.list_execution_ids() == []


@pytest.mark.anyio
async def test_a_clone_stands_where_its_source_stands(backend: Any) -> None:
    machine = FlatMachine(config_dict=WAITS, persistence=backend)
    await machine.execute()
    source = await flat.CheckpointManager(backend, machine.execution_id).load_latest()
    assert source is not None
    clone = await flat.clone_snapshot(source, "twin", backend)
    assert (clone.execution_id, clone.current_state, clone.context) == ("twin", "ask", {"x": 1})
    assert sorted(await backend.list_execution_ids()) == sorted([machine.execution_id, "twin"])


@pytest.mark.anyio
async def test_a_checkpoint_cannot_be_written_by_hand() -> None:
    with pytest.raises(flat.DefinitionError, match="cannot be written by hand"):
        await flat.MemoryBackend().save("a/step_1", b"{}")
    with pytest.raises(ValueError, match="max_count must be non-negative"):
        await flat.MemoryBackend().prune(max_count=-1)


@pytest.mark.anyio
async def test_a_lock_that_is_held_refuses_a_run(tmp_path: Path) -> None:
    lock = flat.LocalFileLock(tmp_path)
    machine = FlatMachine(config_dict=LAUNCHES, lock=flat.LocalFileLock(tmp_path))
    assert await lock.acquire(machine.execution_id)
    assert not await lock.acquire(machine.execution_id)
    with pytest.raises(flat.ExecutionBusy, match="lock"):
        await machine.execute()
    await lock.release(machine.execution_id)
    assert await machine.execute(resume_from=machine.execution_id) == {}


@pytest.mark.anyio
async def test_signals_of_a_backend_of_their_own_arrive(tmp_path: Path) -> None:
    signals = flat.SQLiteSignalBackend(str(tmp_path / "signals.db"))
    machine = FlatMachine(config_dict=WAITS, persistence=flat.MemoryBackend(), signal_backend=signals)
    assert (await machine.execute())["_waiting"]
    await signals.send("approvals", {"ok": True})
    assert await machine.execute(resume_from=machine.execution_id) == {"x": 1}
    assert await signals.channels() == []


# -- expressions and execution types ------------------------------------------------------------------


def test_expression_engines_decide() -> None:
    simple, cel = flat.get_expression_engine(), flat.get_expression_engine("cel")
    assert simple.evaluate("context.n > 1 and true", {"context": {"n": 2}})
    assert cel.evaluate("context.n > 1 && true", {"context": {"n": 2}})
    assert simple.evaluate("", {})
    with pytest.raises(ValueError, match="Unknown expression engine: nope"):
        flat.get_expression_engine("nope")


class Executor:
    """Answers in turn; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.inputs = list(answers), list[Any]()

    async def execute(self, input_data: Any, context: Any = None) -> Any:
        self.inputs.append((input_data, context))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.anyio
async def test_execution_types_call_an_executor() -> None:
    executor = Executor({"a": 1})
    result = await flat.get_execution_type().execute(executor, {"q": 1}, {"c": 2})
    assert result.output == {"a": 1}
    assert [(dict(given), dict(context)) for given, context in executor.inputs] == [({"q": 1}, {"c": 2})]

    retry = flat.get_execution_type({"type": "retry", "backoffs": [0], "retry_on_empty": True})
    assert (await retry.execute(Executor(None, {"a": 2}), {})).output == {"a": 2}
    failed = await retry.execute(Executor(None, None), {})
    assert failed.error is not None
    assert "empty" in failed.error["message"]

    parallel = flat.ParallelExecution(n_samples=2)
    assert (await parallel.execute(Executor("x", "y"), {})).output["count"] == 2

    vote = flat.MDAPVotingExecution(k_margin=2)
    assert (await vote.execute(Executor({"a": 1}, {"a": 2}, {"a": 1}), {})).output == {"a": 1}
    assert vote.get_metrics()["total_samples"] == 3


def test_unknown_execution_types_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown execution type: often"):
        flat.get_execution_type({"type": "often"})
    with pytest.raises(flat.DefinitionError, match="unexpected keyword argument 'tries'"):
        flat.get_execution_type({"type": "retry", "tries": 3})


# -- validation and meters ------------------------------------------------------------------------------


def test_a_config_is_validated_in_three_manners() -> None:
    wrong = {"spec": "flatmachine", "data": {"states": {"a": {"agnt": "x", "type": "final"}}}}
    assert any('unknown key "agnt"' in text for text in flat.validate_flatmachine_config(wrong, warn=False))
    with pytest.warns(flat.ValidationWarning, match="validation issues"):
        flat.validate_flatmachine_config(wrong)
    with pytest.raises(ValueError, match="validation failed"):
        flat.validate_flatmachine_config(wrong, strict=True)
    assert flat.validate_flatmachine_config(WAITS) == []


def test_schemas_are_bundled() -> None:
    assert flat.get_flatmachine_schema()["$id"].endswith("machine.json")
    assert '"$schema"' in flat.get_asset("flatagent.schema.json")


def test_a_monitor_lets_errors_through_and_tells_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="flat")

    def fail() -> None:
        with flat.AgentMonitor("writer") as monitor:
            monitor.metrics["tokens"] = 3
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert "Agent writer completed in" in caplog.text
    with flat.track_operation("parse"):
        pass
