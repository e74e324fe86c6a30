"""What agents that run outside of us have in common: their task, their settings, their pace, their failures.

Such an agent keeps a conversation of its own and uses tools of its own, so a request that brings messages or
tools is refused.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError

from flat.agents.credentials import resolve_secrets, secrets_of
from flat.agents.protocol import AgentRequest
from flat.core.template import compile_text
from flat.errors import AgentFailed, SpecError

LONGEST_ARGUMENT = 100_000
"""Bytes; the system takes no single argument above 128 KiB."""

_STATUS = re.compile(r"(?<![\d.])([45]\d\d)(?![\d.])")
_LOGIN = re.compile(r"log ?in\b|logged in|api[ _-]?key|unauthori[sz]ed|authenticat|credential", re.IGNORECASE)
_LIMIT = re.compile(r"rate.?limit|too many requests|usage limit|limit reached", re.IGNORECASE)
_BUSY = re.compile(r"overloaded|temporarily|timed? ?out|connection (error|reset|refused)", re.IGNORECASE)


class Settings(BaseModel):
    """Base of the settings of a runtime. Unknown keys are passed over: a newer file may have more of them."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


def read_settings(model: type[S], config: Mapping[str, Any], agent: str, kind: str) -> S:
    """The settings in a config; null counts as absent. Raises `SpecError` that names every wrong key."""
    try:
        return model.model_validate({k: v for k, v in config.items() if v is not None})
    except ValidationError as error:
        told = [f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors(include_url=False)]
        raise SpecError(f'agent "{agent}" ({kind}): {"; ".join(told)}') from None


@dataclass(frozen=True, slots=True)
class Failing:
    """Makes the failures of one agent, without its secrets in them."""

    agent: str
    kind: str
    config: Mapping[str, Any]

    def __call__(self, message: str, **facts: Any) -> AgentFailed:
        for secret in secrets_of(self.config):
            message = message.replace(secret, "***")
        return AgentFailed(f'agent "{self.agent}" ({self.kind}): {message}', **facts)

    def timeout(self, reason: object, **facts: Any) -> AgentFailed:
        """The failure of a turn that took too long."""
        return self(str(reason), code="timeout", retryable=True, type="TimeoutError", **facts)

    def named(self, error: AgentFailed) -> AgentFailed:
        """A failure from below, with the agent's name."""
        return self(
            error.message, code=error.code, retryable=error.retryable, type=error.type, hint=error.hint
        )


def verdict(text: str) -> dict[str, Any]:
    """Code and retryability of a failure that a program tells in words only."""
    status = int(found[1]) if (found := _STATUS.search(text)) else None
    if status == 429 or _LIMIT.search(text):
        return {"code": "rate_limit", "retryable": True, "status_code": status}
    if status in (401, 403) or _LOGIN.search(text):
        return {"code": "auth_error", "retryable": False, "status_code": status}
    if status in (408, 504):
        return {"code": "timeout", "retryable": True, "status_code": status}
    if (status is not None and status >= 500) or _BUSY.search(text):
        return {"code": "server_error", "retryable": True, "status_code": status}
    if status in (400, 404, 413, 422):
        return {"code": "invalid_request", "retryable": False, "status_code": status}
    return {"code": "server_error", "retryable": False}


def task_of(request: AgentRequest, fail: Failing) -> str:
    """What is to be done: the input `task`, else `prompt`."""
    refuse_tools(request, fail)
    for key in ("task", "prompt"):
        value = request.input.get(key)
        if value is not None and str(value).strip():
            return str(value)
    raise fail(
        "there is no task: give the state an input named `task`, or the agent a prompt",
        code="invalid_request",
        type="ValueError",
    )


def refuse_tools(request: AgentRequest, fail: Failing) -> None:
    if request.tools or request.messages:
        what = "tools" if request.tools else "messages"
        raise fail(
            f"it runs its own tools and keeps its own conversation, so it cannot be given {what}; "
            "use it in a state without `tool_loop`",
            code="invalid_request",
            type="NotImplementedError",
        )


def session_to_resume(request: AgentRequest, fail: Failing) -> str | None:
    """The input `resume_session`. It becomes an argument, so it must not look like an option."""
    value = str(request.input.get("resume_session") or "").strip()
    if value.startswith("-"):
        raise fail(f"{value!r} is no session to resume", code="invalid_request", type="ValueError")
    return value or None


def fits_argument(text: str) -> bool:
    """Whether a text may be an argument of its own: short enough, and not to be taken for an option."""
    return not text.startswith("-") and len(text.encode(errors="replace")) <= LONGEST_ARGUMENT


def check_working_directory(template: str) -> None:
    """Raise `ExpressionError` when the setting is no template, or asks for what it cannot have."""
    compile_text(template).check(("context", "input"))


def working_directory(template: str, request: AgentRequest, home: Path) -> Path:
    """Where the agent works: the rendered setting, relative to where we run; by default the config's folder."""
    if not template:
        return home
    rendered = str(compile_text(template).render({"context": request.context, "input": request.input}))
    path = Path(rendered.strip()).expanduser()
    return path if path.is_absolute() else Path.cwd() / path


def existing_file(path: str, home: Path, key: str, fail: Failing) -> str:
    """The absolute path of a file that a setting names, relative to the config's folder."""
    found = home / Path(path).expanduser()
    if not found.is_file():
        raise fail(f"`{key}`: there is no file {found}", code="invalid_request", type="FileNotFoundError")
    return os.path.abspath(found)


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every `${env:NAME}` replaced, to be used for one call and not kept."""
    return dict(resolve_secrets(dict(config)))


def shorter(first: float | None, second: float | None) -> float | None:
    """The shorter of two timeouts, of which 0 and None are none."""
    given = [seconds for seconds in (first or None, second) if seconds is not None]
    return min(given) if given else None


class CallThrottle:
    """Keeps calls apart: each starts at least `delay` plus up to twice `jitter` seconds after the one before."""

    def __init__(
        self,
        delay: float = 0.0,
        jitter: float = 0.0,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.delay, self.jitter = max(0.0, delay), max(0.0, jitter)
        self._now, self._sleep, self._uniform = now, sleep, uniform
        self._lock: anyio.Lock | None = None
        self._last: float | None = None

    async def wait(self) -> float:
        """Wait for one's turn; gives the seconds slept."""
        if self.delay == self.jitter == 0:
            return 0.0
        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            slept = 0.0
            if self._last is not None:
                apart = self.delay + self._uniform(0.0, 2 * self.jitter)
                slept = max(0.0, self._last + apart - self._now())
                if slept:
                    await self._sleep(slept)
            self._last = self._now()
            return slept

    def reset(self) -> None:
        """Forget the last call: the next one is free."""
        self._last = None


def throttle_from_config(config: Mapping[str, Any]) -> CallThrottle:
    """The throttle that `rate_limit_delay` and `rate_limit_jitter` describe."""
    return CallThrottle(
        float(config.get("rate_limit_delay") or 0), float(config.get("rate_limit_jitter") or 0)
    )


class CommandSettings(Settings):
    """The keys that every agent behind a command line has. Times are in seconds; no `timeout` is 0."""

    working_dir: str = ""
    timeout: float = 0
    rate_limit_delay: float = 0
    rate_limit_jitter: float = 0


C = TypeVar("C", bound=CommandSettings)


class CommandAgent(Generic[C]):
    """One configuration of a program. Sessions are its own affair; an input `resume_session` continues one."""

    kind: ClassVar[str]
    model: type[C]
    """Its settings."""

    def __init__(
        self, config: Mapping[str, Any], directory: Path, *, name: str = "",
        throttle: CallThrottle | None = None,
    ) -> None:  # fmt: skip
        self.name, self.config, self.directory = name or self.kind, dict(config), directory
        self.settings = read_settings(self.model, config, self.name, self.kind)
        check_working_directory(self.settings.working_dir)
        self.throttle = throttle or throttle_from_config(dict(self.settings))
        self.fail = Failing(self.name, self.kind, self.config)

    def now(self) -> C:
        """The settings for one call, with their secrets."""
        return read_settings(self.model, without_secrets(self.config), self.name, self.kind)
