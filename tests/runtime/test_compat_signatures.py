"""Calls that code for the seed system makes bind here: names, their order, what may be left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from inspect import Parameter
from typing import Any

import pytest

import flat

CALLS = """
    FlatMachine(config_file=None, config_dict=None, lifecycle_hooks=None, hooks_registry=None,
        persistence=None, lock=None, invoker=None, result_backend=None, signal_backend=None,
        trigger_backend=None, agent_registry=None, agent_adapters=None, profiles_file=None,
        tool_provider=None, config_store=None, **more)
    FlatMachine.execute(self, input=None, max_steps=None, max_agent_calls=None, resume_from=None)
    FlatMachine.execute_sync(self, input=None, max_steps=None, max_agent_calls=None, handle_signals=True)
    FlatMachine.cancel(self)
    WaitingForSignal(channel)
    LoggingHooks(log_level=20)
    MetricsHooks()
    CompositeHooks(*hooks)
    WebhookHooks(endpoint, timeout=5.0, api_key=None)
    HooksRegistry()
    HooksRegistry.register(self, name, factory)
    HooksRegistry.has(self, name)
    HooksRegistry.resolve(self, ref)
    DistributedWorkerHooks(registration, work)
    ExpressionEngine.evaluate(self, expression, variables)
    get_expression_engine(mode="simple")
    ExecutionType.from_config(config)
    ExecutionType.execute(self, executor, input_data, context=None, session_id=None)
    DefaultExecution()
    ParallelExecution(n_samples=3)
    RetryExecution(backoffs=None, jitter=0.1, retry_on_empty=False)
    MDAPVotingExecution(k_margin=3, max_candidates=10, max_response_tokens=None)
    MDAPVotingExecution.get_metrics(self)
    get_execution_type(config=None)
    RetryableError(error_info)
    validate_flatmachine_config(config, warn=True, strict=False)
    get_flatmachine_schema()
    get_asset(filename)
    setup_logging(level=None, format=None, force=False)
    get_logger(name)
    get_meter()
    AgentMonitor(agent_id, extra_attributes=None)
    track_operation(operation_name, **attributes)
    InMemoryResultBackend()
    ResultBackend.write(self, uri, data)
    ResultBackend.read(self, uri, block=True, timeout=None)
    ResultBackend.exists(self, uri)
    ResultBackend.delete(self, uri)
    LaunchIntent(execution_id, machine, input, launched=False)
    LaunchIntent.to_dict(self)
    LaunchIntent.from_dict(data)
    make_uri(execution_id, path="result")
    parse_uri(uri)
    get_default_result_backend()
    reset_default_result_backend()
    SubprocessInvoker(machine_path=None, working_dir=None)
    launch_machine(machine_config, input_data, execution_id=None, working_dir=None, parent_id=None)
    MemoryBackend()
    LocalFileBackend(base_dir=".checkpoints")
    SQLiteCheckpointBackend(db_path)
    PersistenceBackend.save(self, key, value)
    PersistenceBackend.load(self, key)
    PersistenceBackend.delete(self, key)
    PersistenceBackend.list_execution_ids(self, *, event=None, waiting_channel=None)
    PersistenceBackend.delete_execution(self, execution_id)
    PersistenceBackend.prune(self, *, max_age_seconds=None, max_count=None)
    CheckpointManager(backend, execution_id)
    CheckpointManager.save_checkpoint(self, snapshot)
    CheckpointManager.load_latest(self)
    CheckpointManager.load_status(self)
    CheckpointManager.prune_checkpoints(self, max_age_seconds=None, max_count=None)
    MachineSnapshot(execution_id, machine_name, spec_version, current_state, context, step)
    clone_snapshot(snapshot, new_execution_id, persistence)
    ConfigStore.put(self, raw)
    ConfigStore.get(self, hash)
    MemoryConfigStore()
    LocalFileConfigStore(base_dir=".checkpoints")
    config_hash(text)
    ExecutionLock.acquire(self, key)
    ExecutionLock.release(self, key)
    NoOpLock()
    LocalFileLock(lock_dir=".locks")
    SQLiteLeaseLock(db_path, owner_id, phase="machine", ttl_seconds=300, renew_interval_seconds=100)
    AgentExecutor.execute(self, input_data, context=None, session_id=None)
    AgentAdapter.create_executor(self, *, agent_name, agent_ref, context)
    AgentRef(type, ref=None, config=None)
    AgentAdapterContext(config_dir, settings, machine_name, profiles_file=None, profiles_dict=None)
    AgentAdapterRegistry(adapters=None)
    AgentAdapterRegistry.register(self, adapter)
    AgentAdapterRegistry.get(self, type_name)
    AgentAdapterRegistry.create_executor(self, *, agent_name, agent_ref, context)
    normalize_agent_ref(raw)
    coerce_agent_result(value)
    build_rate_limit_windows(headers)
    build_rate_limit_state(headers, retry_after=None)
    WorkerRegistration(worker_id)
    WorkerRecord.to_dict(self)
    WorkerRecord.from_dict(data)
    WorkerFilter(status=None, capability=None, stale_threshold_seconds=None)
    MemoryRegistrationBackend()
    SQLiteRegistrationBackend(db_path="workers.sqlite")
    create_registration_backend(type="memory", **more)
    MemoryWorkBackend()
    SQLiteWorkBackend(db_path="workers.sqlite")
    create_work_backend(type="memory", **more)
    RegistrationBackend.heartbeat(self, worker_id, metadata=None)
    RegistrationBackend.update_status(self, worker_id, status)
    RegistrationBackend.get(self, worker_id)
    RegistrationBackend.list(self, filter=None)
    WorkPool.push(self, item, options=None)
    WorkPool.claim(self, worker_id)
    WorkPool.complete(self, item_id, result=None)
    WorkPool.fail(self, item_id, error=None)
    WorkPool.size(self)
    WorkPool.release_by_worker(self, worker_id)
    WorkBackend.pool(self, name)
    WorkItem(id, data, claimed_by=None, attempts=0, max_retries=3, status="pending", created_at=None,
        claimed_at=None)
    Signal(id, channel, data, created_at)
    SignalBackend.send(self, channel, data)
    SignalBackend.consume(self, channel)
    SignalBackend.peek(self, channel)
    SignalBackend.channels(self)
    TriggerBackend.notify(self, channel)
    MemorySignalBackend()
    SQLiteSignalBackend(db_path="flatmachines.sqlite")
    NoOpTrigger()
    FileTrigger(base_path)
    SocketTrigger(socket_path)
    create_signal_backend(type="memory")
    create_trigger_backend(type="none")
    SignalDispatcher(signal_backend, persistence_backend, resume_fn=None, *, resumer=None)
    SignalDispatcher.dispatch(self, channel)
    SignalDispatcher.dispatch_channel(self, channel, *, max_signals=None)
    SignalDispatcher.dispatch_all(self)
    SignalDispatcher.listen(self, socket_path, stop_event=None)
    MachineResumer.resume(self, execution_id, signal_data)
    ConfigStoreResumer(signal_backend, persistence_backend, config_store, ref_resolver=None,
        lifecycle_hooks=None, hooks_registry=None, tool_provider=None)
    ConfigFileResumer(signal_backend, persistence_backend, config_store, ref_resolver=None,
        lifecycle_hooks=None, hooks_registry=None, tool_provider=None)
    send_and_notify(signal_backend, trigger_backend, channel, data)
    ToolResult(content, is_error=False)
    SimpleToolProvider(tools)
    MachineHooks.on_machine_start(self, context)
    MachineHooks.on_machine_end(self, context, final_output)
    MachineHooks.on_state_enter(self, state_name, context)
    MachineHooks.on_state_exit(self, state_name, context, output)
    MachineHooks.on_transition(self, from_state, to_state, context)
    MachineHooks.on_error(self, state_name, error, context)
    MachineHooks.on_action(self, state_name, action_name, context)
    MachineHooks.on_tool_calls(self, state_name, tool_calls, context)
    MachineHooks.on_tool_result(self, state_name, tool_result, context)
    MachineHooks.on_agent_stream_event(self, state_name, event, context)
    MachineHooks.get_tool_provider(self, state_name)
    FlatAgent(config_file=None, config_dict=None, tool_provider=None, backend=None, profiles_file=None,
        profiles_dict=None, **overrides)
    FlatAgent.call(self, tool_provider=None, messages=None, tools=None, context=None, session_id=None,
        **inputs)
    FlatAgent.call_sync(self, tool_provider=None, messages=None, tools=None, context=None,
        session_id=None, **inputs)
    FlatAgent.set_tool_provider(self, provider)
    BaseFlatAgent(config_file=None, config_dict=None, backend=None, **more)
    LiteLLMBackend(model, temperature=None, max_tokens=None, top_p=None, frequency_penalty=None,
        presence_penalty=None, retry_delays=None)
    AISuiteBackend(model, temperature=None, max_tokens=None, top_p=None, retry_delays=None)
    Extractor.extract(self, response)
    FreeExtractor()
    FreeThinkingExtractor()
    ToolsExtractor()
    StructuredExtractor(schema=None)
    RegexExtractor(patterns, types=None)
    ToolCall(id, server, tool, arguments=None)
    extract_headers_from_response(response)
    extract_headers_from_error(error)
    extract_rate_limit_info(headers)
    extract_status_code(error)
    is_retryable_error(error, status_code)
    extract_cerebras_rate_limits(raw_headers)
    extract_anthropic_rate_limits(raw_headers)
    extract_openai_rate_limits(raw_headers)
    CodexClient(model_config, *, config_dir=None, transport=None)
    CodexClient.call(self, params)
    CodexResult(content="", tool_calls=None, usage=None, finish_reason=None, status=None,
        raw_events=None, response_headers=None, response_status_code=None, request_meta=None)
    CodexUsage(input_tokens=0, output_tokens=0, total_tokens=0, cached_tokens=0)
    CodexToolCall(id, name, arguments_json)
    CodexOAuthCredential(access, refresh, expires, account_id=None)
    CodexHTTPError(status_code, body, message=None, headers=None)
    CopilotClient(model_config, *, config_dir=None, transport=None)
    validate_flatagent_config(config, warn=True, strict=False)
    get_flatagent_schema()
    ProfileManager(profiles_dict=None)
    ProfileManager.clear_cache()
    ProfileManager.to_dict(self)
    ProfileManager.get_profile(self, name)
    ProfileManager.resolve_model_config(self, ref)
    resolve_model_config(ref, config_dir, profiles_file=None, profiles_dict=None)
    load_profile_from_file(profile_file)
    resolve_profile_config(profile_ref, config_dir, profiles_file=None, profiles_dict=None)
    ClaudeCodeExecutor(config, config_dir, settings, throttle=None)
    CodexCliExecutor(config, config_dir, settings, throttle=None)
    create_claude_code_executor(*, config, config_dir, settings=None)
    create_codex_cli_executor(*, config, config_dir, settings=None)
    CodexAppServerTransport(codex_bin="codex", cwd=None, session_source="exec")
    SmolagentsExecutor(agent, default_kwargs=None)
    create_smolagents_executor(*, ref, config_dir, config=None)
    PiAgentBridgeExecutor(ref, config, runner_path, node_path, cwd, env, timeout)
    create_pi_agent_bridge_executor(*, ref, config, config_dir, settings=None)
    ClaudeCodeSessionHoldback(executor, session_id=None)
    CodexSessionHoldback(executor, model="gpt-5.3-codex", thread_id=None)
    ClaudeCodeForkResult(session_id, task, result, cache_read_tokens=0, cache_write_tokens=0)
    CodexForkResult(thread_id, task, result, cached_input_tokens=0)
"""
NAMES = """
    ReferenceResolver ToolProvider StreamEventCallback LLMBackend MCPToolProvider AgentResponse UsageInfo
    CostInfo RateLimitInfo ErrorInfo FinishReason CerebrasRateLimits AnthropicRateLimits OpenAIRateLimits
    CodexAuthError CodexClientError CopilotResult CopilotUsage CopilotToolCall CopilotAuthError
    CopilotClientError CopilotHTTPError ValidationWarning ProfileManager.profiles
    ProfileManager.default_profile ProfileManager.override_profile Tool ToolLoopAgent Guardrails
    ToolLoopResult AggregateUsage StopReason SteeringProvider
"""


def named(path: str) -> Any:
    found: Any = flat
    for part in path.split("."):
        found = getattr(found, part)
    return found


def wanted(call: str) -> list[Parameter]:
    """The parameters of a call as they are written above."""
    scope: dict[str, Any] = {}
    exec(f"def call({call.partition('(')[2]}: ...", scope)
    return list(inspect.signature(scope["call"]).parameters.values())


def differences(asked: list[Parameter], given: list[Parameter]) -> Iterator[str]:
    """Why a call like the first would not do what it says on the second."""
    if asked and asked[0].name == "self" and not (given and given[0].name == "self"):
        asked = asked[1:]  # a static or class method
    kinds = {p.kind for p in given}
    names = [p.name for p in given]
    by_place = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for place, want in enumerate(p for p in asked if p.kind is p.POSITIONAL_OR_KEYWORD):
        if place >= len(by_place):
            if Parameter.VAR_POSITIONAL not in kinds:
                yield f"{want.name} cannot be given by its place"
        elif by_place[place].name != want.name:
            yield f"{want.name} is called {by_place[place].name}"
        elif want.default is not Parameter.empty:
            default = by_place[place].default
            if default is Parameter.empty:
                yield f"{want.name} is required"
            elif want.default is not None and default != want.default:
                yield f"{want.name} is {default!r} by default"
    for want in asked:
        if want.kind is Parameter.KEYWORD_ONLY and want.name not in names:
            yield f"{want.name} is not there"
        elif want.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL) and want.kind not in kinds:
            yield f"*{want.name} is not there"
    known = {p.name for p in asked}
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    for more in given:
        if more.default is Parameter.empty and more.name not in known and more.kind not in several:
            yield f"{more.name} is required besides"


@pytest.mark.parametrize("call", re.findall(r"[\w.]+\([^()]*\)", CALLS))
def test_a_call_binds(call: str) -> None:
    target = named(call.partition("(")[0])
    given = list(inspect.signature(target).parameters.values())
    assert list(differences(wanted(call), given)) == [], inspect.signature(target)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_name_is_there(name: str) -> None:
    assert named(name) is not None
