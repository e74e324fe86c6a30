"""An executor that answers by script, for trees in tests.

    executor = ScriptedExecutor(say("On it", call("add_leg", city="Oslo")), say("Done"))
    charter = Charter("travel", executor=executor, nodes=[desk])

Answers go to the leaves in turn, or to each leaf its own: `ScriptedExecutor({"desk": [...], "fare_watch": [...]})`
goes by the node's name. The last answer of a list is given from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from flat.agents.protocol import AgentRequest, AgentResult, Usage

Answer: TypeAlias = "str | AgentResult | Exception | Later | Callable[[AgentRequest], Any]"
USAGE = Usage(input_tokens=10, output_tokens=5, api_calls=1, cost=0.001, cost_source="estimate")


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that waits for something first: an awaitable is made and awaited."""

    wait: Callable[[], Any]
    answer: Any


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that the model asks for."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


def call(name: str, /, *, id: str = "", **arguments: Any) -> Call:
    """A tool call with these arguments."""
    return Call(name, arguments, id)


def say(text: str = "", *calls: Call, finish: str | None = None) -> AgentResult:
    """An answer with text and calls; `finish` is the model's reason to stop."""
    made = tuple(
        {"id": one.id or f"c{i}", "name": one.name, "arguments": dict(one.arguments)}
        for i, one in enumerate(calls)
    )
    reason = finish or ("tool_use" if made else "stop")
    return AgentResult(content=text or None, tool_calls=made, finish_reason=reason, usage=USAGE)


class ScriptedExecutor:
    """Gives its answers in turn. `requests` holds what it was asked, `asked` by whom."""

    def __init__(self, *answers: Any) -> None:
        if not answers:
            raise ValueError("a scripted executor needs at least one answer")
        by_node = isinstance(answers[0], Mapping)
        self.scripts: dict[str, Sequence[Any]] = dict(answers[0]) if by_node else {"": answers}
        self.requests: list[AgentRequest] = []
        self._turns: dict[str, int] = {}

    @property
    def asked(self) -> list[str]:
        """The nodes that asked, in order."""
        return [str(request.input["node"]) for request in self.requests]

    async def call(self, request: AgentRequest) -> AgentResult:
        node = str(request.input["node"])
        key = node if node in self.scripts else ""
        if key not in self.scripts:
            raise ValueError(f'no script for the node "{node}"; there are: {", ".join(self.scripts)}')
        self.requests.append(request)
        turn = self._turns.get(key, 0)
        self._turns[key] = turn + 1
        script = self.scripts[key]
        return await self._result(script[min(turn, len(script) - 1)], request, f"{node}{turn}")

    async def _result(self, answer: Any, request: AgentRequest, name: str) -> AgentResult:
        if isinstance(answer, Later):
            waited = answer.wait()
            if hasattr(waited, "__await__"):
                await waited
            return await self._result(answer.answer, request, name)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return await self._result(answer(request), request, name)
        if isinstance(answer, str):
            answer = say(answer)
        if request.on_token is not None and answer.content:
            for word in answer.content.split(" "):
                request.on_token(word)
        calls = tuple({**one, "id": f"{name}-{one['id']}"} for one in answer.tool_calls)
        result: AgentResult = replace(answer, tool_calls=calls)
        return result
