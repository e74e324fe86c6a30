"""Short-lived tokens in place of API keys: where they come from is a command's or a function's business.

    provider: openai
    name: gpt-x
    token_command: "gh auth token"      # or a list; what it prints is the token

In Python a profile's `token` may be a function, async or not, that gives the token. A token is kept for a while;
one that a provider refuses is fetched anew, once. We log in nowhere ourselves, under nobody's name.
"""

from __future__ import annotations

import inspect
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio.to_thread

from flat.errors import AgentFailed, SpecError

KEPT_SECONDS = 300.0
_COMMAND_SECONDS = 60.0


class Tokens:
    """The tokens of one agent."""

    def __init__(self, source: Any, agent: str, *, kept: float = KEPT_SECONDS) -> None:
        """The source is a command (text or list) or a function of no arguments."""
        if not callable(source) and not (
            isinstance(source, str | list | tuple) and source and all(isinstance(p, str) for p in source)
        ):
            raise SpecError(f'agent "{agent}": `token_command` is a command, as text or as a list of texts')
        self._source, self._agent, self._seconds = source, agent, kept
        self._token, self._fetched = "", 0.0

    @classmethod
    def of(cls, settings: Mapping[str, Any], agent: str) -> Tokens | None:
        """From a profile; None when it has neither `token` nor `token_command`."""
        source = settings.get("token") or settings.get("token_command")
        if source is None:
            return None
        return cls(source, agent, kept=float(settings.get("token_seconds") or KEPT_SECONDS))

    async def get(self, refused: str = "") -> str:
        """The token; a new one when this one was refused."""
        old = time.monotonic() - self._fetched > self._seconds
        if not self._token or old or self._token == refused:
            self._token = (await self._fetch()).strip()
            self._fetched = time.monotonic()
        if not self._token:
            raise self._failure("it gave nothing")
        return self._token

    async def _fetch(self) -> str:
        if not callable(self._source):
            return await anyio.to_thread.run_sync(self._run, self._source)
        try:
            token = self._source()
            return str(await token if inspect.isawaitable(token) else token)
        except Exception as error:  # it is the user's code
            raise self._failure(f"{type(error).__name__}: {error}") from error

    def _run(self, command: str | Sequence[str]) -> str:
        words = shlex.split(command) if isinstance(command, str) else list(command)
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise self._failure(f"exit status {error.returncode}: {error.stderr.strip()[-300:]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failure(str(error)) from error
        return done.stdout

    def _failure(self, why: str) -> AgentFailed:
        what = "`token`" if callable(self._source) else "`token_command`"
        return AgentFailed(
            f'agent "{self._agent}": no token: {what} failed: {why}',
            code="auth_error",
            hint="run the command by hand to see what it says",
        )
