"""Performing effects: the only place where a program's names meet the user's code and the world."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any, Protocol

import orjson

from flat.agents.executor_result import as_result
from flat.agents.protocol import Agent, AgentRequest, AgentResult
from flat.agents.protocol import Usage as AgentUsage
from flat.core.effects import AwaitSignal, CallAgent, Effect, RunAction, RunHook, RunTool, Sleep
from flat.core.events import Done, Failed, Reply, Spent, Steered, Told
from flat.core.failure import Failure, failure_of
from flat.core.hookref import HookRefs
from flat.core.program import Program
from flat.core.turn import Identity, machine_facts
from flat.drivers.clock import Clock, DeadlinePassed
from flat.drivers.draft import draft, draft_of, settle, settled_context
from flat.errors import ActionFailed, BindingError, DeadlineExceeded, ExecutionError, HookFailed
from flat.hooks import action_takes_state, hears_stream, stream_listener
from flat.hooks.base import POINTS
from flat.hooks.stream import Listen

RunsTool = Callable[[str, str, Any], Any]
OfUser = RunAction | RunHook | CallAgent | RunTool
"""Effects in which the user's code sees the context."""


class Facts(Mapping[str, Any]):
    """`context["machine"]` as hooks see it: read-only, and made only when it is looked at."""

    __slots__ = ("_effect", "_facts", "_program", "_snapshot")

    def __init__(self, program: Program, snapshot: Identity, effect: OfUser) -> None:
        self._program, self._snapshot, self._effect = program, snapshot, effect
        self._facts: dict[str, Any] | None = None

    def _open(self) -> dict[str, Any]:
        if self._facts is None:
            step = int(self._effect.id.split("/", 2)[1])
            snapshot = self._snapshot
            facts = machine_facts(self._program, snapshot, self._effect.node, step, snapshot.spent)
            self._facts = {**facts, "idempotency_key": f"{snapshot.execution_id}/{self._effect.id}"}
        return self._facts

    def __getitem__(self, key: str) -> Any:
        return self._open()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def __repr__(self) -> str:
        return repr(self._open())

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("context.machine is read-only")

    def __reduce__(self) -> Any:
        return (dict, (self._open(),))


class TreeEffects(Protocol):
    """What makes the model calls and tool calls of a tree."""

    async def perform(self, effect: CallAgent | RunTool, snapshot: Identity, performer: Performer) -> Any: ...
    async def close(self) -> None:
        """The run is over."""
        ...


@dataclass
class Performer:
    """Performs the effects of one machine's executions."""

    program: Program
    make_hooks: Callable[[HookRefs], Any]
    """A new hooks object for a reference, or None for the empty one."""
    make_agent: Callable[[str], Agent]
    clock: Clock
    tool_provider: Any = None
    """What runs tools where no hooks do."""
    on_token: Callable[[str, str], None] | None = None
    """Called with (effect id, piece of text); None when nobody watches."""
    log: list[Any] = field(default_factory=list)
    """The messages of the execution so far."""
    tree: TreeEffects | None = None
    """What makes the model calls and tool calls of a tree."""
    last_error: Exception | None = None
    """For the traceback of a run that fails in this very process."""
    _hooks: dict[HookRefs, Any] = field(default_factory=dict)
    _actions: dict[int, tuple[Callable[..., Any], bool]] = field(default_factory=dict)
    """By identity of the reference, which the program keeps alive: hashing one costs more than the call."""
    _agents: dict[str, Agent] = field(default_factory=dict)

    def hooks(self, refs: HookRefs) -> Any:
        """The hooks object behind a reference: one per reference for the life of this performer."""
        if refs not in self._hooks:
            self._hooks[refs] = self.make_hooks(refs)
        return self._hooks[refs]

    async def perform(self, effect: Effect, snapshot: Identity) -> Done | Failed:
        """Do it. Whatever happens becomes an event; only cancellation passes through."""
        try:
            if effect.deadline is not None and not isinstance(effect, AwaitSignal):
                value = await self._before_deadline(effect, effect.deadline, snapshot)
            elif type(effect) is RunAction:  # the commonest effect, without a coroutine of its own
                context = draft_of(effect.context)
                context["machine"] = Facts(self.program, snapshot, effect)
                value = self._begin(effect, context)
                if type(value) is CoroutineType or (type(value) is not dict and inspect.isawaitable(value)):
                    value = await value
                if type(value) is dict:
                    value = settled_context(value, effect.context)
                else:
                    value = _as_context(value, context, effect)
            else:
                value = await self._other(effect, snapshot)
        except Exception as error:  # every failure is data from here on
            self.last_error = error
            return Failed(effect.id, failure_of(error), self.clock.now(), _spent_on(error))
        return Done(effect.id, value, self.clock.now())

    async def _before_deadline(self, effect: Effect, deadline: float, snapshot: Identity) -> Any:
        try:
            return await self.clock.before(deadline, lambda: self._other(effect, snapshot))
        except DeadlinePassed:
            limit = self.program.nodes[effect.node].timeout
            raise DeadlineExceeded(f"not done within {limit:g} s", type="TimeoutError") from None

    async def _other(self, effect: Effect, snapshot: Identity) -> Any:
        if isinstance(effect, RunAction):
            return await self._action(effect, snapshot)
        if self.tree is not None and isinstance(effect, CallAgent | RunTool):
            return await self.tree.perform(effect, snapshot, self)
        if isinstance(effect, CallAgent):
            return await self._call(effect, snapshot)
        if isinstance(effect, RunHook):
            return await self._hook(effect, snapshot)
        if isinstance(effect, RunTool):
            return await self._tool(effect)
        if isinstance(effect, Sleep):
            return await self.clock.sleep_until(effect.until)
        raise ExecutionError(f"this driver cannot perform a {effect.kind} effect")

    # -- user code ---------------------------------------------------------------

    def _context(self, effect: OfUser, snapshot: Identity) -> dict[str, Any]:
        context = draft_of(effect.context)
        context["machine"] = Facts(self.program, snapshot, effect)
        return context

    def _begin(self, effect: RunAction, context: dict[str, Any]) -> Any:
        """Call the action: what it returns is its result, or something to await for it."""
        bound = self._actions.get(id(effect.hooks))
        if bound is None:
            hooks = self.hooks(effect.hooks)
            if hooks is None:
                raise BindingError("action", effect.action, hint="the state, or the machine, names no hooks")
            bound = self._actions[id(effect.hooks)] = (hooks.on_action, action_takes_state(hooks))
        call, takes_state = bound
        return call(effect.node, effect.action, context) if takes_state else call(effect.action, context)

    async def _action(self, effect: RunAction, snapshot: Identity) -> dict[str, Any]:
        context = self._context(effect, snapshot)
        result = self._begin(effect, context)
        if inspect.isawaitable(result):
            result = await result
        return _as_context(result, context, effect)

    async def _hook(self, effect: RunHook, snapshot: Identity) -> Any:
        hooks, point, context = self.hooks(effect.hooks), effect.point, self._context(effect, snapshot)
        method = getattr(hooks, POINTS[point])
        if point == "machine_start":
            result = method(context)
        elif point == "machine_end":
            result = method(context, draft(effect.arguments["output"]))
        elif point == "state_enter":
            result = method(effect.node, context)
        elif point == "state_exit":
            result = method(effect.node, context, draft(effect.arguments["output"]))
        elif point == "transition":
            result = method(effect.node, effect.arguments["to"], context)
        elif point in ("tool_calls", "tool_result"):
            result = method(effect.node, draft(next(iter(effect.arguments.values()))), context)
        else:
            result = method(effect.node, _as_exception(effect.arguments["failure"]), context)
        if inspect.isawaitable(result):
            result = await result
        if point in ("machine_start", "state_enter", "tool_calls", "tool_result"):
            return _as_context(result, context, effect)
        if result is None and "output" in effect.arguments:  # nothing returned leaves it as it is
            result = effect.arguments["output"]
        return Steered(settle(result), settled_context(context, effect.context))

    # -- tools ---------------------------------------------------------------------

    def _provider(self, node: str, refs: HookRefs) -> Any:
        """What runs the tools of a node: its hooks' provider, else the machine's."""
        hooks = self.hooks(refs)
        ask = getattr(hooks, "get_tool_provider", None)
        provider = None if ask is None else ask(node)
        return self.tool_provider if provider is None else provider

    async def _tool(self, effect: RunTool) -> Told:
        """Whatever goes wrong in a tool is told to the model, which can act on it."""
        try:
            run = await self._tool_of(effect)
            if run is None:
                return Told(content=f"No tool provider configured for '{effect.tool}'", is_error=True)
            return await self._timed(effect, run)
        except DeadlinePassed:
            return Told(content=f"Tool '{effect.tool}' timed out after {effect.timeout:g}s", is_error=True)
        except Exception as error:
            self.last_error = error
            return Told(content=f"Error executing '{effect.tool}': {error}", is_error=True)

    async def _tool_of(self, effect: RunTool) -> RunsTool | None:
        """What runs a tool: the provider, or the agent for a tool that is its own and not the provider's."""
        provider = self._provider(effect.node, effect.hooks)
        agent = self._agent(effect.agent) if effect.agent else None
        runs_own: RunsTool | None = getattr(agent, "execute_tool", None)
        if runs_own is not None and effect.tool not in _names(_definitions(provider)):
            own = await self._own_tools(agent)
            if provider is None or effect.tool in _names(own):
                return runs_own
        return None if provider is None else provider.execute_tool

    async def _timed(self, effect: RunTool, execute: RunsTool) -> Told:
        async def run() -> Told:
            result = execute(effect.tool, effect.call_id, settle(effect.arguments))
            if inspect.isawaitable(result):
                result = await result
            content = getattr(result, "content", result)
            told = content if isinstance(content, str) else orjson.dumps(content, default=str).decode()
            return Told(content=told, is_error=bool(getattr(result, "is_error", False)))

        if effect.timeout is None:
            return await run()
        return await self.clock.before(self.clock.now() + effect.timeout, run)

    async def _tools(self, effect: CallAgent, agent: Agent) -> list[Any] | None:
        """The tools that a call offers: the provider's first, then the agent's own."""
        if effect.tools != "offered":
            return None if effect.tools == "none" else []
        tools = _definitions(self._provider(effect.node, effect.hooks))
        names = _names(tools)
        return tools + [tool for tool in await self._own_tools(agent) if _tool_name(tool) not in names]

    async def _own_tools(self, agent: Any) -> Sequence[Any]:
        ask = getattr(agent, "tool_definitions", None)
        return await ask() if ask is not None else getattr(agent, "tools", ())

    # -- agents --------------------------------------------------------------------

    async def _call(self, effect: CallAgent, snapshot: Identity) -> Reply:
        agent, hooks = self._agent(effect.agent), self.hooks(effect.hooks)
        tools = None if effect.tools == "none" else await self._tools(effect, agent)
        if not hears_stream(hooks):
            return _reply(as_result(await agent.call(self._request(effect, tools, snapshot)), effect.agent))
        async with stream_listener(hooks, effect.node, effect.context) as listen:
            answer = await agent.call(self._request(effect, tools, snapshot, listen))
        return _reply(as_result(answer, effect.agent))

    def _agent(self, name: str) -> Agent:
        agent = self._agents.get(name)
        if agent is None:
            agent = self._agents[name] = self.make_agent(name)
        return agent

    def _request(
        self, effect: CallAgent, tools: list[Any] | None, snapshot: Identity, listen: Listen | None = None
    ) -> AgentRequest:
        on_token = self.on_token
        return AgentRequest(
            input=draft_of(effect.input),
            context=self._context(effect, snapshot),
            messages=None if effect.messages is None else settle(effect.messages),
            tools=tools,
            session_id=effect.session_id,
            idempotency_key=f"{snapshot.execution_id}/{effect.id}",
            timeout=None if effect.deadline is None else max(0.0, effect.deadline - self.clock.now()),
            on_token=None if on_token is None else lambda text: on_token(effect.id, text),
            on_event=listen,
        )


def _reply(result: AgentResult) -> Reply:
    return Reply(
        payload=settle(result.payload()),
        text=result.content,
        spent=spent_of(result.usage),
        finish_reason=result.finish_reason,
        tool_calls=tuple(result.tool_calls),
        prompt=result.rendered_user_prompt,
    )


def _definitions(provider: Any) -> list[Any]:
    return [] if provider is None else list(provider.get_tool_definitions() or ())


def _names(tools: Sequence[Any]) -> set[Any]:
    return {_tool_name(tool) for tool in tools}


def _tool_name(tool: Any) -> Any:
    return tool.get("function", tool).get("name") if isinstance(tool, Mapping) else None


def spent_of(usage: AgentUsage) -> Spent:
    """What a call used, in the engine's own terms."""
    return Spent(
        calls=usage.api_calls,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=usage.cost or 0.0,
        priced=usage.cost is not None or usage.api_calls == 0,
    )


def _spent_on(error: BaseException) -> Spent | None:
    """What a failed call used all the same, when the error says so."""
    usage = getattr(error, "usage", None)
    return spent_of(usage) if isinstance(usage, AgentUsage) else None


def _as_context(result: Any, given: dict[str, Any], effect: RunAction | RunHook) -> dict[str, Any]:
    if result is None:
        result = given
    if not isinstance(result, Mapping):
        what = (
            f'action "{effect.action}"' if isinstance(effect, RunAction) else f"hook {POINTS[effect.point]}"
        )
        raise ActionFailed(
            f"{what} returned {type(result).__name__}; return the context (a mapping), or nothing to keep it",
            type="TypeError",
        )
    return settled_context(result, effect.context)


def _as_exception(failure: Failure) -> Exception:
    """An exception to show to a hook. Its class is made up, so that its name is the one that failed."""
    return type(failure.type, (HookFailed,), {})(failure.message, type=failure.type)  # type: ignore[no-any-return]
