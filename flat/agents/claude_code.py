"""Claude Code as an agent: its command line in print mode, one process per turn, JSON lines back.

A turn that used tools often stops before the task is done, so the same session is asked to go on until it prints
the exit sentinel (or answers in one go, or the allowed continuations are used up). What all runs spent is summed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from flat.agents.process import GRACE, Command, CommandTimeout, Ended, Events, run, told_on_stderr
from flat.agents.protocol import AgentRequest, AgentResult, Usage, add_usage
from flat.agents.turns import (
    CommandAgent,
    CommandSettings,
    existing_file,
    fits_argument,
    session_to_resume,
    shorter,
    task_of,
    verdict,
    working_directory,
)
from flat.errors import AgentFailed

EXIT_SENTINEL = "<<AGENT_EXIT>>"
CONTINUE = (
    "Continue with the task. When all of it is finished, answer with "
    + EXIT_SENTINEL
    + " alone, and nothing else."
)
INSTALL = "install it with `npm install -g @anthropic-ai/claude-code`, or set `claude_bin`"
KEPT_EVENTS = 20_000
"""Events of one call that are kept for its metadata."""

_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class ClaudeCodeSettings(CommandSettings):
    """The keys of a `claude-code` agent."""

    claude_bin: str = "claude"
    model: str = "opus"
    permission_mode: str = ""
    dangerously_skip_permissions: bool = False
    add_dirs: list[str] = Field(default_factory=list)
    system_prompt: str = ""
    append_system_prompt: str = ""
    tools: list[str] = Field(default_factory=list)
    mcp_config: str = ""
    max_budget_usd: float = 0
    effort: str = "high"
    max_continuations: int = 100
    exit_sentinel: str = EXIT_SENTINEL
    continuation_prompt: str = ""
    rate_limit_delay: float = 3.0
    rate_limit_jitter: float = 4.0


@dataclass(slots=True)
class Run:
    """What one process said."""

    on_text: Callable[[str], None] | None = None
    watch: Callable[[Mapping[str, Any]], None] | None = None
    events: list[Mapping[str, Any]] = field(default_factory=list)
    result: Mapping[str, Any] | None = None
    structured: Any = None
    session_id: str | None = None
    stop_reason: str | None = None
    tool_calls: list[Mapping[str, Any]] = field(default_factory=list)
    tool_results: list[Mapping[str, Any]] = field(default_factory=list)
    rate_limit: Mapping[str, Any] | None = None
    stderr: str = ""

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take in one line. Kinds that are not known are only kept."""
        if len(self.events) < KEPT_EVENTS:
            self.events.append(event)
        if self.watch is not None:
            self.watch(event)
        kind = event.get("type")
        self.session_id = event.get("session_id") or self.session_id
        if kind == "assistant":
            self._assistant(_mapping(event.get("message")))
        elif kind == "user":
            self._tool_results(_mapping(event.get("message")))
        elif kind == "rate_limit_event":
            self.rate_limit = _rate_limit(_mapping(event.get("rate_limit_info") or event))
        elif kind == "result":
            self.result = event

    def _assistant(self, message: Mapping[str, Any]) -> None:
        self.stop_reason = message.get("stop_reason") or self.stop_reason
        for block in _blocks(message):
            if block.get("type") == "text" and self.on_text is not None:
                self.on_text(str(block.get("text") or ""))
            elif block.get("type") == "tool_use":
                self._tool_use(block)

    def _tool_use(self, block: Mapping[str, Any]) -> None:
        name, arguments = str(block.get("name") or ""), block.get("input") or {}
        if name == "StructuredOutput":
            self.structured = arguments
            return
        self.tool_calls.append({"id": block.get("id") or "", "name": name, "arguments": arguments})

    def _tool_results(self, message: Mapping[str, Any]) -> None:
        names = {call["id"]: call["name"] for call in self.tool_calls}
        for block in _blocks(message):
            if block.get("type") == "tool_result":
                call = block.get("tool_use_id")
                found = {"tool_use_id": call, "name": names.get(call, ""), "content": block.get("content")}
                self.tool_results.append({**found, "is_error": bool(block.get("is_error"))})

    @property
    def text(self) -> str:
        return str(_mapping(self.result).get("result") or "")

    @property
    def finish_reason(self) -> str | None:
        raw = _mapping(self.result).get("stop_reason") or self.stop_reason
        if raw is None:  # versions that do not tell
            return "stop" if _mapping(self.result).get("subtype") == "success" else None
        return _FINISH.get(str(raw), str(raw))

    @property
    def usage(self) -> Usage:
        facts = _mapping(self.result)
        told, cost = _mapping(facts.get("usage")), facts.get("total_cost_usd", facts.get("cost_usd"))
        known = isinstance(cost, int | float) and not isinstance(cost, bool)
        return Usage(
            input_tokens=_count(told.get("input_tokens")),
            output_tokens=_count(told.get("output_tokens")),
            cache_read_tokens=_count(told.get("cache_read_input_tokens")),
            cache_write_tokens=_count(told.get("cache_creation_input_tokens")),
            api_calls=1,
            cost=float(cost) if known and cost is not None else None,
            cost_source="provider" if known else "unknown",
        )


class ClaudeCodeAgent(CommandAgent[ClaudeCodeSettings]):
    """One configuration of Claude Code: `ClaudeCodeAgent({"model": "opus"}, Path("config"))`."""

    kind = "claude-code"
    model = ClaudeCodeSettings

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        return await self.ask(request)

    async def ask(
        self, request: AgentRequest, *, system: str | None = None, fork: bool = False
    ) -> AgentResult:
        """One turn, with words to put after the CLI's own system prompt.

        With `fork` the resumed session is left as it is, and the turn goes on in a copy of it.
        """
        task = task_of(request, self.fail)
        resumed = session_to_resume(request, self.fail)
        turn = _Turn(self, self.now(), request, system)
        return await turn.take(task, resumed, fork)


class _Turn:
    """One call: as many runs as it takes."""

    def __init__(
        self, agent: ClaudeCodeAgent, settings: ClaudeCodeSettings, request: AgentRequest, system: str | None
    ) -> None:
        self.agent, self.settings, self.request, self.system = agent, settings, request, system
        self.directory = working_directory(settings.working_dir, request, agent.directory)
        self.deadline = None if request.timeout is None else time.monotonic() + request.timeout
        self.task = ""
        self.runs: list[Run] = []

    async def take(self, task: str, resumed: str | None, fork: bool) -> AgentResult:
        self.task = task
        flags = ["--resume", resumed] if resumed else ["--session-id", str(uuid.uuid4())]
        if fork:
            flags.append("--fork-session")
        last = await self._run(task, flags)
        session = last.session_id or (flags[1] if not fork else None)
        while self._goes_on(last) and session:
            prompt = self.settings.continuation_prompt or self._continuation()
            last = await self._run(prompt, ["--resume", session])
            session = last.session_id or session
        return self._result(last, session)

    def _continuation(self) -> str:
        return CONTINUE.replace(EXIT_SENTINEL, self.settings.exit_sentinel)

    def _goes_on(self, last: Run) -> bool:
        done = len(self.runs) - 1
        allowed = self.settings.max_continuations
        if allowed == 0 or (allowed > 0 and done >= allowed):
            return False
        if self.settings.exit_sentinel and self.settings.exit_sentinel in last.text:
            return False
        turns = _mapping(last.result).get("num_turns")
        return not (last.finish_reason == "stop" and isinstance(turns, int) and turns <= 1)

    async def _run(self, prompt: str, session: Sequence[str]) -> Run:
        fail = self.agent.fail
        await self.agent.throttle.wait()
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        command = replace(self._command(prompt, session), timeout=shorter(self.settings.timeout, left))
        found = Run(self.request.on_token, self.request.on_event)
        events = Events(self.settings.claude_bin, found.on_event)
        try:
            ended = await run(command, events)
        except CommandTimeout as error:
            raise fail.timeout(error, usage=self._spent(found)) from None
        except AgentFailed as error:
            raise fail.named(error) from None
        found.stderr = ended.stderr
        self._check(found, ended, events.garbage)
        self.runs.append(found)
        return found

    def _command(self, prompt: str, session: Sequence[str]) -> Command:
        told = fits_argument(prompt)
        return Command(
            # In print mode the prompt may come on stdin too.
            arguments=[
                *(self.settings.claude_bin, "-p", *([prompt] if told else ())),
                *("--output-format", "stream-json", "--verbose", *session),
                *self._flags(),
            ],
            directory=self.directory,
            stdin=b"" if told else prompt.encode(),
            grace=GRACE,
            install=INSTALL,
        )

    def _flags(self) -> list[str]:
        s, flags = self.settings, ["--model", self.settings.model]
        if s.permission_mode:
            flags += ["--permission-mode", s.permission_mode]
        if s.dangerously_skip_permissions:
            flags.append("--dangerously-skip-permissions")
        for folder in s.add_dirs:
            flags += ["--add-dir", folder]
        appended = self.system or s.append_system_prompt
        if s.system_prompt:
            flags += ["--system-prompt", s.system_prompt]
        elif appended:
            flags += ["--append-system-prompt", appended]
        if s.tools:
            flags += ["--tools", *s.tools, "--disallowed-tools", "LSP"]
        if s.mcp_config:
            path = existing_file(s.mcp_config, self.agent.directory, "mcp_config", self.agent.fail)
            flags += ["--mcp-config", path]
        if s.max_budget_usd > 0:
            flags += ["--max-budget-usd", f"{s.max_budget_usd:g}"]
        return [*flags, "--effort", s.effort] if s.effort else flags

    def _check(self, found: Run, ended: Ended, garbage: str) -> None:
        """Raise the failure that a run ended in, if it did."""
        facts, spent = found.result, self._spent(found)
        if facts is None:
            how = ended.words if ended.status else f"it gave no result{told_on_stderr(ended.stderr)}"
            if garbage:
                how += f"; it printed: {garbage}"
            kind = "ClaudeCodeProcessError" if ended.status else "ClaudeCodeError"
            raise self.agent.fail(how, type=kind, usage=spent, **verdict(ended.stderr + garbage))
        if facts.get("is_error"):
            told = found.text or "; ".join(map(str, facts.get("errors") or ())) or str(facts.get("subtype"))
            judged, limit = verdict(told), found.rate_limit
            if limit and limit["limited"]:
                judged = {"code": "rate_limit", "retryable": True, "retry_after": limit.get("retry_after")}
            raise self.agent.fail(
                told + told_on_stderr(ended.stderr),
                type="ClaudeCodeError",
                rate_limit=limit,
                usage=spent,
                hint="run `claude` once and log in" if judged["code"] == "auth_error" else "",
                **judged,
            )

    def _spent(self, last: Run | None = None) -> Usage:
        runs = [*self.runs, last] if last is not None else self.runs
        spent = runs[0].usage
        for further in runs[1:]:
            spent = add_usage(spent, further.usage)
        return spent

    def _result(self, last: Run, session: str | None) -> AgentResult:
        facts = _mapping(last.result)
        if isinstance(last.structured, Mapping):
            output = {**last.structured, "session_id": session, "_raw_result": last.text}
        else:
            output = {"result": last.text, "session_id": session}
        return AgentResult(
            output=output,
            content=last.text,
            usage=self._spent(),
            finish_reason=last.finish_reason,
            rendered_user_prompt=self.task,
            rate_limit=last.rate_limit,
            raw=last.result,
            metadata={
                **{key: facts.get(key) for key in ("num_turns", "duration_ms", "duration_api_ms")},
                "session_id": session,
                "stream_events": [event for one in self.runs for event in one.events],
                "stderr": "".join(one.stderr for one in self.runs),
                "tool_calls": [call for one in self.runs for call in one.tool_calls],
                "tool_results": [result for one in self.runs for result in one.tool_results],
                "continuation_attempts": len(self.runs) - 1,
            },
            provider_data=dict(_mapping(facts.get("modelUsage"))),
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [b for b in content if isinstance(b, Mapping)] if isinstance(content, list) else []


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _rate_limit(info: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"limited": info.get("status") == "rejected"}
    resets = info.get("resetsAt")
    if state["limited"] and isinstance(resets, int | float):
        state["retry_after"] = max(0.0, resets - time.time())
    return {**state, "windows": [dict(info)]}
