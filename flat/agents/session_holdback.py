"""Many tasks on one warm prompt cache: a session is prepared once, and each task runs on a fork of it.

    holdback = ClaudeCodeSessionHoldback(ClaudeCodeAgent(config, folder))
    await holdback.seed("Read the whole repository")
    results = await holdback.fork_n(["Document a.py", "Document b.py"])

The prepared session itself never goes on, so every fork begins at the same point.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio

from flat.agents.protocol import AgentRequest, AgentResult
from flat.errors import AgentFailed

WARM_TASK = "Answer with OK alone."
CODEX_AT_ONCE = 4
"""Forks of a Codex thread that run at the same time, unless it is said otherwise."""
NOTHING_TO_FORK = "there is nothing to fork yet: await seed(…), or adopt(…)"


@dataclass(frozen=True, slots=True)
class ClaudeCodeForkResult:
    """What one task came to: a result, or why there is none."""

    session_id: str | None
    task: str
    result: AgentResult | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    error: AgentFailed | None = None


@dataclass(frozen=True, slots=True)
class CodexForkResult:
    """What one task came to: a result, or why there is none."""

    thread_id: str | None
    task: str
    result: AgentResult | None = None
    cached_input_tokens: int = 0
    error: AgentFailed | None = None


class Asked(Protocol):
    """What is asked: an agent, or an executor around one."""

    async def ask(self, request: AgentRequest, *, fork: bool = False) -> AgentResult: ...


class AskedWithModel(Protocol):
    """The same, for Codex, which may change the model between turns."""

    async def ask(
        self, request: AgentRequest, *, fork: bool = False, model: str | None = None
    ) -> AgentResult: ...


F = TypeVar("F", ClaudeCodeForkResult, CodexForkResult)


async def _each(
    fork: Callable[[str], Awaitable[F]],
    failed: Callable[[str, AgentFailed], F],
    tasks: Sequence[str],
    most: int,
) -> list[F]:
    """A fork for each task, in their order. One that fails does not end the others."""
    found: dict[int, F] = {}
    limit = anyio.Semaphore(most)

    async def run(number: int, task: str) -> None:
        async with limit:
            try:
                found[number] = await fork(task)
            except AgentFailed as error:
                found[number] = failed(task, error)

    async with anyio.create_task_group() as group:
        for number, task in enumerate(tasks):
            group.start_soon(run, number, task)
    return [found[number] for number in range(len(tasks))]


class ClaudeCodeSessionHoldback:
    """A session that is held back, and forks of it."""

    def __init__(self, executor: Asked, session_id: str | None = None) -> None:
        self.executor, self.session_id = executor, session_id
        self._forks: list[ClaudeCodeForkResult] = []

    async def seed(self, task: str, context: Mapping[str, Any] | None = None) -> AgentResult:
        """Prepare the session by a turn of its own."""
        result = await self.executor.ask(AgentRequest(input={"task": task}, context=context or {}))
        self.session_id = result.metadata["session_id"]
        return result

    def adopt(self, session_id: str) -> None:
        """Take a session that is there already. Nothing is called."""
        self.session_id = session_id

    async def fork(self, task: str, context: Mapping[str, Any] | None = None) -> ClaudeCodeForkResult:
        """One task on a fork. Raises `AgentFailed`, and `RuntimeError` when there is no session yet."""
        if self.session_id is None:
            raise RuntimeError(NOTHING_TO_FORK)
        request = AgentRequest(input={"task": task, "resume_session": self.session_id}, context=context or {})
        result = await self.executor.ask(request, fork=True)
        forked = ClaudeCodeForkResult(
            session_id=result.metadata["session_id"],
            task=task,
            result=result,
            cache_read_tokens=result.usage.cache_read_tokens,
            cache_write_tokens=result.usage.cache_write_tokens,
        )
        self._forks.append(forked)
        return forked

    async def fork_n(
        self,
        tasks: Sequence[str],
        context: Mapping[str, Any] | None = None,
        max_concurrent: int | None = None,
    ) -> list[ClaudeCodeForkResult]:
        """A fork for each task, in their order, all at once unless limited. One that fails does not end the others."""
        if self.session_id is None:
            raise RuntimeError(NOTHING_TO_FORK)
        return await _each(
            partial(self.fork, context=context),
            lambda task, error: ClaudeCodeForkResult(None, task, error=error),
            tasks,
            max_concurrent or max(1, len(tasks)),
        )

    async def warm(self) -> ClaudeCodeForkResult:
        """Keep the cache alive by a fork that is thrown away."""
        return await self.fork(WARM_TASK)

    @property
    def stats(self) -> dict[str, int]:
        """How many forks there were, and how much of their prompts came from the cache."""
        return {
            "forks": len(self._forks),
            "cache_read_tokens": sum(fork.cache_read_tokens for fork in self._forks),
            "cache_write_tokens": sum(fork.cache_write_tokens for fork in self._forks),
        }


class CodexSessionHoldback:
    """A Codex thread that is held back, and forks of it. The model stays the same, else the cache would not hold."""

    def __init__(
        self, executor: AskedWithModel, model: str = "gpt-5.3-codex", thread_id: str | None = None
    ) -> None:
        self.executor, self.model, self.thread_id = executor, model, thread_id
        self._forks: list[CodexForkResult] = []

    async def seed(self, task: str, context: Mapping[str, Any] | None = None) -> AgentResult:
        """Prepare the thread by a turn of its own."""
        request = AgentRequest(input={"task": task}, context=context or {})
        result = await self.executor.ask(request, model=self.model)
        self.thread_id = result.metadata["thread_id"]
        return result

    def adopt(self, thread_id: str) -> None:
        """Take a thread that is there already. Nothing is called."""
        self.thread_id = thread_id

    async def fork(self, task: str, context: Mapping[str, Any] | None = None) -> CodexForkResult:
        """One task on a fork. Raises `AgentFailed`, and `RuntimeError` when there is no thread yet."""
        if self.thread_id is None:
            raise RuntimeError(NOTHING_TO_FORK)
        request = AgentRequest(input={"task": task, "resume_session": self.thread_id}, context=context or {})
        result = await self.executor.ask(request, fork=True, model=self.model)
        forked = CodexForkResult(result.metadata["thread_id"], task, result, result.usage.cache_read_tokens)
        self._forks.append(forked)
        return forked

    async def fork_n(
        self,
        tasks: Sequence[str],
        context: Mapping[str, Any] | None = None,
        max_concurrent: int | None = None,
    ) -> list[CodexForkResult]:
        """A fork for each task, in their order, a few at a time. One that fails does not end the others."""
        if self.thread_id is None:
            raise RuntimeError(NOTHING_TO_FORK)
        return await _each(
            partial(self.fork, context=context),
            lambda task, error: CodexForkResult(None, task, error=error),
            tasks,
            max_concurrent or CODEX_AT_ONCE,
        )

    async def warm(self) -> CodexForkResult:
        """Keep the cache alive by a fork that is thrown away."""
        return await self.fork(WARM_TASK)

    @property
    def stats(self) -> dict[str, int]:
        """How many forks there were, and how much of their prompts came from the cache."""
        cached = sum(fork.cached_input_tokens for fork in self._forks)
        return {"forks": len(self._forks), "cached_input_tokens": cached}
