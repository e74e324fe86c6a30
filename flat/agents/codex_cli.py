"""Codex as an agent: its command line in `exec` mode, one process per turn, JSON lines back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from flat.agents.process import Command, CommandTimeout, Ended, Events, run, told_on_stderr
from flat.agents.protocol import AgentRequest, AgentResult, Usage
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

INSTALL = "install it with `npm install -g @openai/codex`, or set `codex_bin`"
KEPT_EVENTS = 20_000
"""Events of one call that are kept for its metadata."""

_AUTOMATIC = ("never", "on-request", "untrusted")


class CodexCliSettings(CommandSettings):
    """The keys of a `codex-cli` agent."""

    codex_bin: str = "codex"
    model: str = "gpt-5.3-codex"
    sandbox: str = "workspace-write"
    approval_policy: str = "never"
    dangerously_bypass_approvals_and_sandbox: bool = False
    reasoning_effort: str = "high"
    output_schema: str = ""
    add_dirs: list[str] = Field(default_factory=list)
    skip_git_repo_check: bool = False
    ephemeral: bool = False
    search: bool = False
    config_overrides: dict[str, str | bool | int | float] = Field(default_factory=dict)
    feature_enable: list[str] = Field(default_factory=list)
    feature_disable: list[str] = Field(default_factory=list)
    use_app_server: bool = False
    session_source: str = "exec"


@dataclass(slots=True)
class Turn:
    """What one process said."""

    on_text: Callable[[str], None] | None = None
    watch: Callable[[Mapping[str, Any]], None] | None = None
    thread_id: str | None = None
    text: str | None = None
    failure: str | None = None
    events: list[Mapping[str, Any]] = field(default_factory=list)
    items: list[Mapping[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(api_calls=1))

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take in one line. Kinds that are not known are only kept."""
        if len(self.events) < KEPT_EVENTS:
            self.events.append(event)
        if self.watch is not None:
            self.watch(event)
        kind = event.get("type")
        if kind == "thread.started":
            self.thread_id = str(event.get("thread_id") or "") or None
        elif kind == "item.completed" and isinstance(event.get("item"), Mapping):
            self._item(event["item"])
        elif kind == "turn.completed":
            # It also reports a lost connection as an error, and then goes on.
            self.failure = None
            self.usage = _usage(event.get("usage"))
        elif kind in ("turn.failed", "error"):
            self.failure = _message(event)

    def _item(self, item: Mapping[str, Any]) -> None:
        if len(self.items) < KEPT_EVENTS:
            self.items.append(item)
        if item.get("type", item.get("item_type")) != "agent_message":
            return
        self.text = str(item.get("text") or "")
        if self.on_text is not None:
            self.on_text(self.text)


class CodexCliAgent(CommandAgent[CodexCliSettings]):
    """One configuration of Codex, whose sessions it calls threads."""

    kind = "codex-cli"
    model = CodexCliSettings

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        if self.settings.use_app_server:
            return await self.ask(request)
        task = task_of(request, self.fail)
        resumed = session_to_resume(request, self.fail)
        settings = self.now()
        command = Command(
            arguments=self.arguments(settings, task, resumed),
            directory=working_directory(settings.working_dir, request, self.directory),
            stdin=b"" if fits_argument(task) else task.encode(),
            timeout=shorter(settings.timeout, request.timeout),
            install=INSTALL,
        )
        turn = Turn(request.on_token, request.on_event)
        events = Events(settings.codex_bin, turn.on_event)
        await self.throttle.wait()
        try:
            ended = await run(command, events)
        except CommandTimeout as error:
            raise self.fail.timeout(error, usage=turn.usage) from None
        except AgentFailed as error:
            raise self.fail.named(error) from None
        self._check(turn, ended, events.garbage)
        return _result(turn, ended, task, resumed)

    async def ask(
        self, request: AgentRequest, *, fork: bool = False, model: str | None = None
    ) -> AgentResult:
        """One turn by the app server. With `fork` the resumed thread is left as it is; the turn goes on in a copy."""
        from flat.agents.codex_app_server import take_turn

        await self.throttle.wait()
        return await take_turn(self, request, fork=fork, model=model)

    def arguments(self, settings: CodexCliSettings, task: str, resumed: str | None) -> list[str]:
        """The command line of a turn; a prompt that cannot be an argument comes on stdin, as `-`."""
        s = settings
        found = [s.codex_bin, "exec", *(["resume"] if resumed else []), "--json", "--model", s.model]
        if s.dangerously_bypass_approvals_and_sandbox:
            found.append("--dangerously-bypass-approvals-and-sandbox")
        else:
            if not resumed:
                found += ["--sandbox", s.sandbox]
            if resumed or s.approval_policy in _AUTOMATIC:
                found.append("--full-auto")
        if s.reasoning_effort:
            found += ["-c", f'reasoning_effort="{s.reasoning_effort}"']
        if s.output_schema:
            found += [
                "--output-schema",
                existing_file(s.output_schema, self.directory, "output_schema", self.fail),
            ]
        for folder in s.add_dirs:
            found += ["--add-dir", folder]
        found += ["--skip-git-repo-check"] * s.skip_git_repo_check + ["--ephemeral"] * s.ephemeral
        if s.search:
            found += ["-c", "search=true"]
        for key, value in s.config_overrides.items():
            found += ["-c", f"{key}={_toml(value)}"]
        for feature in s.feature_enable:
            found += ["--enable", feature]
        for feature in s.feature_disable:
            found += ["--disable", feature]
        return [*found, *([resumed] if resumed else []), task if fits_argument(task) else "-"]

    def _check(self, turn: Turn, ended: Ended, garbage: str) -> None:
        """Raise the failure that a turn ended in, if it did."""
        if turn.failure is not None:
            told = turn.failure + told_on_stderr(ended.stderr)
            kind, judged = "CodexCliError", verdict(turn.failure)
        elif ended.status and turn.text is None:
            told = ended.words + (f"; it printed: {garbage}" if garbage else "")
            kind, judged = "CodexCliProcessError", verdict(ended.stderr + garbage)
        else:
            return
        hint = "run `codex login`" if judged["code"] == "auth_error" else ""
        raise self.fail(told, type=kind, usage=turn.usage, hint=hint, **judged)


def _result(turn: Turn, ended: Ended, task: str, resumed: str | None) -> AgentResult:
    thread = turn.thread_id or resumed
    return AgentResult(
        output={"result": turn.text, "thread_id": thread},
        content=turn.text,
        usage=turn.usage,
        finish_reason="stop",
        rendered_user_prompt=task,
        metadata={
            "thread_id": thread,
            "stream_events": turn.events,
            "items": turn.items,
            "stderr": ended.stderr,
            "exit_code": ended.status,
        },
    )


def _toml(value: str | bool | int | float) -> str:
    """A value as the CLI reads it; what is no TOML it takes for text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _usage(told: Any) -> Usage:
    facts = told if isinstance(told, Mapping) else {}

    def count(key: str) -> int:
        value = facts.get(key)
        return int(value) if isinstance(value, int | float) else 0

    return Usage(
        input_tokens=count("input_tokens"),
        output_tokens=count("output_tokens"),
        cache_read_tokens=count("cached_input_tokens"),
        api_calls=1,
    )


def _message(event: Mapping[str, Any]) -> str:
    error = event.get("error")
    inner = error.get("message") if isinstance(error, Mapping) else error
    return str(event.get("message") or inner or "the turn failed without a message")
