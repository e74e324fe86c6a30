"""Many tasks on one warm prompt cache: a Claude Code session is prepared once, and each task runs on a fork of it.

    holdback = ClaudeCodeSessionHoldback(ClaudeCodeAgent(config, folder))
    await holdback.seed("Read the whole repository")
    results = await holdback.fork_n(["Document a.py", "Document b.py"])

The prepared session itself never goes on, so every fork begins at the same point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from flat.agents.claude_code import ClaudeCodeAgent
from flat.agents.protocol import AgentRequest, AgentResult
from flat.errors import AgentFailed

WARM_TASK = "Answer with OK alone."


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeCodeForkResult:
    """What one task came to: a result, or why there is none."""

    session_id: str | None
    task: str
    result: AgentResult | None = None
    error: AgentFailed | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


class ClaudeCodeSessionHoldback:
    """A session that is held back, and forks of it."""

    def __init__(self, executor: ClaudeCodeAgent, session_id: str | None = None) -> None:
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
            raise RuntimeError("there is no session to fork yet: await seed(…), or adopt(…) one")
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
        found: dict[int, ClaudeCodeForkResult] = {}
        limit = anyio.Semaphore(max_concurrent or max(1, len(tasks)))

        async def run(number: int, task: str) -> None:
            async with limit:
                try:
                    found[number] = await self.fork(task, context)
                except AgentFailed as error:
                    found[number] = ClaudeCodeForkResult(session_id=None, task=task, error=error)

        if self.session_id is None:
            raise RuntimeError("there is no session to fork yet: await seed(…), or adopt(…) one")
        async with anyio.create_task_group() as group:
            for number, task in enumerate(tasks):
                group.start_soon(run, number, task)
        return [found[number] for number in range(len(tasks))]

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
