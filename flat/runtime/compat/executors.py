"""The seed system's executors of external programs: the same agents, asked by `execute` and answering with results.

    executor = create_claude_code_executor(config={"model": "opus"}, config_dir=".")
    result = await executor.execute({"task": "Tidy up"})      # result.error says why it failed

An executor never raises the failures of its agent. What it runs in can be cancelled from elsewhere by `cancel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from flat.agents.claude_code import ClaudeCodeAgent
from flat.agents.codex_cli import CodexCliAgent
from flat.agents.executor_result import ExecutorResult
from flat.agents.pi_agent import PiAgent
from flat.agents.protocol import Agent, AgentRequest, AgentResult, Usage
from flat.agents.smolagents import SmolagentsAgent
from flat.agents.turns import CallThrottle
from flat.errors import AgentFailed

GIVEN = "given#agent"
"""Where an agent of smolagents is from that was handed over."""


class _Executor:
    """An agent, asked as the seed system asks."""

    def __init__(self, agent: Agent) -> None:
        self.agent: Any = agent
        self._stream_event_callback: Any = None
        self._running: set[anyio.CancelScope] = set()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {}

    async def execute(
        self,
        input_data: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        session_id: str | None = None,
    ) -> ExecutorResult:
        """One turn. A failure is in the result's `error`."""
        request = AgentRequest(
            input=dict(input_data),
            context=context or {},
            session_id=session_id,
            on_event=self._stream_event_callback,
        )
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                return _given(await self.agent.call(request))
            except AgentFailed as error:
                return _failed(error)
            finally:
                self._running.discard(scope)
        return ExecutorResult(
            error={"code": "aborted", "type": "Cancelled", "message": "it was cancelled", "retryable": False},
            finish_reason="aborted",
        )

    async def execute_with_tools(
        self,
        input_data: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, Any]] | None = None,
        context: Mapping[str, Any] | None = None,
        session_id: str | None = None,
    ) -> ExecutorResult:
        """Such programs run tools of their own."""
        raise NotImplementedError(f"{type(self).__name__} runs its own tools; use it without `tool_loop`")

    async def cancel(self) -> bool:
        """End what runs; says whether anything did."""
        running = list(self._running)
        for scope in running:
            scope.cancel()
        return bool(running)


class _CommandExecutor(_Executor):
    """A program. `settings` are what a machine says for all such agents; the config wins."""

    made: type[ClaudeCodeAgent | CodexCliAgent]

    def __init__(
        self,
        config: Mapping[str, Any],
        config_dir: str | Path,
        settings: Mapping[str, Any] | None,
        throttle: CallThrottle | None = None,
    ) -> None:
        merged = {**(settings or {}), **config}
        super().__init__(self.made(merged, Path(config_dir), throttle=throttle))


class ClaudeCodeExecutor(_CommandExecutor):
    """Claude Code."""

    made = ClaudeCodeAgent

    async def ask(self, request: AgentRequest, *, fork: bool = False) -> AgentResult:
        """One turn, for a session that is held back."""
        result: AgentResult = await self.agent.ask(request, fork=fork)
        return result


class CodexCliExecutor(_CommandExecutor):
    """Codex."""

    made = CodexCliAgent

    async def ask(
        self, request: AgentRequest, *, fork: bool = False, model: str | None = None
    ) -> AgentResult:
        """One turn by the app server, for a thread that is held back."""
        result: AgentResult = await self.agent.ask(request, fork=fork, model=model)
        return result


class SmolagentsExecutor(_Executor):
    """An agent of smolagents that is there already. `default_kwargs` are arguments of each run."""

    def __init__(self, agent: Any, default_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(SmolagentsAgent({"ref": GIVEN}, Path.cwd()))
        if agent is not None:
            self.agent.take(agent)
        self.default_kwargs = dict(default_kwargs or {})

    async def execute(
        self,
        input_data: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        session_id: str | None = None,
    ) -> ExecutorResult:
        return await super().execute({**self.default_kwargs, **input_data}, context, session_id)


class PiAgentBridgeExecutor(_Executor):
    """An agent of a JavaScript module, in Node."""

    def __init__(
        self,
        ref: str,
        config: Mapping[str, Any] | None = None,
        runner_path: str | Path | None = None,
        node_path: str = "node",
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> None:
        folder = Path.cwd() if cwd is None else Path(cwd)
        told = {
            "ref": ref,
            "agent_config": dict(config or {}),
            "runner": None if runner_path is None else str(Path(runner_path).absolute()),
            "node": node_path,
            "env": dict(env or {}),
            "timeout": timeout,
        }
        super().__init__(PiAgent(told, folder))


def create_claude_code_executor(
    *, config: Mapping[str, Any], config_dir: str | Path, settings: Mapping[str, Any] | None = None
) -> ClaudeCodeExecutor:
    return ClaudeCodeExecutor(config, config_dir, _for("claude_code", settings))


def create_codex_cli_executor(
    *, config: Mapping[str, Any], config_dir: str | Path, settings: Mapping[str, Any] | None = None
) -> CodexCliExecutor:
    return CodexCliExecutor(config, config_dir, _for("codex_cli", settings))


def create_smolagents_executor(
    *, ref: str, config_dir: str | Path, config: Mapping[str, Any] | None = None
) -> SmolagentsExecutor:
    """By the factory that `module#name` or `file.py#name` stands for."""
    executor = SmolagentsExecutor(None)
    executor.agent = SmolagentsAgent({**(config or {}), "ref": ref}, Path(config_dir))
    return executor


def create_pi_agent_bridge_executor(
    *,
    ref: str,
    config: Mapping[str, Any] | None,
    config_dir: str | Path,
    settings: Mapping[str, Any] | None = None,
) -> PiAgentBridgeExecutor:
    """By the options of an agent of type `pi-agent`: `node`, `runner`, `cwd`, `env`, `timeout`, `agent_config`."""
    merged = {**_for("pi_agent", settings), **(config or {}), "ref": ref}
    executor = PiAgentBridgeExecutor(ref)
    executor.agent = PiAgent(merged, Path(config_dir))
    return executor


def _for(kind: str, settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The part of a machine's settings that is for one type of agent."""
    runners = (settings or {}).get("agent_runners")
    found = runners.get(kind) if isinstance(runners, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _given(result: AgentResult) -> ExecutorResult:
    return ExecutorResult(
        output=result.output,
        content=result.content,
        raw=result.raw,
        usage=_counts(result.usage),
        cost=result.usage.cost if result.cost is None else result.cost,
        metadata=dict(result.metadata),
        finish_reason=result.finish_reason,
        rate_limit=result.rate_limit,
        provider_data=dict(result.provider_data),
        tool_calls=list(result.tool_calls) or None,
        rendered_user_prompt=result.rendered_user_prompt,
    )


def _failed(error: AgentFailed) -> ExecutorResult:
    usage = getattr(error, "usage", None)
    told = {"code": error.code, "type": error.type, "message": error.message, "retryable": error.retryable}
    return ExecutorResult(
        error=told,
        finish_reason="error",
        usage=_counts(usage) if isinstance(usage, Usage) else None,
        rate_limit=getattr(error, "rate_limit", None),
    )


def _counts(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "api_calls": usage.api_calls,
    }
