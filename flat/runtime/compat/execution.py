"""Expression engines and execution types, for code that uses them by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from flat.agents.adapters import as_agent
from flat.agents.executor_result import ExecutorResult
from flat.agents.protocol import Agent, AgentRequest, AgentResult
from flat.core.condition import condition_class
from flat.core.strategies.retry import DEFAULT_BACKOFFS
from flat.core.strategies.vote import METRICS
from flat.errors import DefinitionError
from flat.runtime.loading import load
from flat.runtime.outcome import Outcome
from flat.runtime.runtime import Runtime


class ExpressionEngine(Protocol):
    """Decides conditions."""

    def evaluate(self, expression: str, variables: Mapping[str, Any]) -> Any: ...


class _Engine:
    def __init__(self, mode: str) -> None:
        self._conditions = condition_class(mode)

    def evaluate(self, expression: str, variables: Mapping[str, Any]) -> Any:
        return not expression.strip() or self._conditions(expression, roots=tuple(variables)).test(variables)


def get_expression_engine(mode: str = "simple") -> ExpressionEngine:
    """The engine of a mode: `simple` or `cel`."""
    if mode not in ("simple", "cel"):
        raise ValueError(f"Unknown expression engine: {mode}")
    return _Engine(mode)


class RetryableError(RuntimeError):
    """An agent failed in a way that may pass. `on_error` knows such failures by this name."""

    def __init__(self, error_info: Mapping[str, Any]) -> None:
        self.error_info = dict(error_info)
        super().__init__(f"{error_info.get('type', 'AgentError')}: {error_info.get('message', 'unknown')}")


class ExecutionType:
    """How often and how an agent is called: the `execution` of a state, for one call outside of a machine."""

    type: ClassVar[str] = "default"

    def config(self) -> dict[str, Any]:
        """As a machine file has it."""
        return {"type": self.type, **{k: v for k, v in vars(self).items() if v is not None and k[0] != "_"}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ExecutionType:
        return cls(**{k: v for k, v in config.items() if k != "type"})

    async def execute(
        self,
        executor: Any,
        input_data: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        session_id: str | None = None,
    ) -> ExecutorResult:
        """Call the executor, or agent, in this way. A failure is the result's `error`."""
        state: dict[str, Any] = {"type": "final", "agent": "agent", "execution": self.config()}
        state |= {"input": {"given": "context.given"}, "session_id": session_id}
        agent = {"spec": "flatagent", "data": {"name": "agent"}, "metadata": dict(_metadata(executor))}
        machine = load(
            config={
                "spec": "flatmachine",
                "data": {
                    "name": self.type,
                    "context": {"given": "input.given"},
                    "agents": {"agent": agent},
                    "states": {"call": {k: v for k, v in state.items() if v is not None}},
                },
            },
            agents={"agent": _Given(as_agent(executor, "agent"), context or {})},
        )
        async with Runtime(None) as runtime:
            outcome = await runtime.start(machine, {"given": dict(input_data)})
        self._seen(outcome)
        usage = {"api_calls": outcome.spent.calls}
        if (failure := outcome.failure) is not None:
            error = {"type": failure.type, "message": failure.message, "retryable": bool(failure.retryable)}
            return ExecutorResult(error=error, finish_reason="error", usage=usage, cost=outcome.spent.cost)
        return ExecutorResult(output=outcome.output, usage=usage, cost=outcome.spent.cost)

    def _seen(self, outcome: Outcome) -> None:
        """Take over what the call told of itself."""


class _Given:
    """The agent, with the caller's own input and context in place of the little machine's."""

    def __init__(self, agent: Agent, context: Mapping[str, Any]) -> None:
        self._agent, self._context = agent, context

    async def call(self, request: AgentRequest) -> AgentResult:
        return await self._agent.call(
            AgentRequest(
                input=request.input["given"],
                context=self._context,
                session_id=request.session_id,
                idempotency_key=request.idempotency_key,
            )
        )


class DefaultExecution(ExecutionType):
    """One call."""


class ParallelExecution(ExecutionType):
    """Several calls at once."""

    type = "parallel"

    def __init__(self, n_samples: int = 3) -> None:
        self.n_samples = n_samples


class RetryExecution(ExecutionType):
    """Calls again after a failure."""

    type = "retry"

    def __init__(
        self, backoffs: Sequence[float] | None = None, jitter: float = 0.1, retry_on_empty: bool = False
    ) -> None:
        self.backoffs = list(DEFAULT_BACKOFFS if backoffs is None else backoffs)
        self.jitter = jitter
        self.retry_on_empty = retry_on_empty


class MDAPVotingExecution(ExecutionType):
    """Calls until one answer has enough votes."""

    type = "mdap_voting"

    def __init__(
        self, k_margin: int = 3, max_candidates: int = 10, max_response_tokens: int | None = None
    ) -> None:
        self.k_margin = k_margin
        self.max_candidates = max_candidates
        self.max_response_tokens = max_response_tokens
        self._metrics: dict[str, Any] = {}

    def get_metrics(self) -> dict[str, Any]:
        """What the last vote took."""
        return dict(self._metrics)

    def _seen(self, outcome: Outcome) -> None:
        self._metrics = dict(outcome.context.get(METRICS) or {})


_TYPES = {cls.type: cls for cls in (DefaultExecution, ParallelExecution, RetryExecution, MDAPVotingExecution)}


def get_execution_type(config: Mapping[str, Any] | None = None) -> ExecutionType:
    """The execution type that the `execution` of a state means."""
    kind = (config or {}).get("type") or "default"
    if kind not in _TYPES:
        raise ValueError(f"Unknown execution type: {kind}")
    try:
        return _TYPES[kind].from_config(config or {})
    except TypeError as error:
        raise DefinitionError(f"execution type {kind}: {error}") from None


def _metadata(executor: Any) -> Mapping[str, Any]:
    found = getattr(executor, "metadata", None)
    return found if isinstance(found, Mapping) else {}
