"""Adapters: what makes an agent of each `type` that a machine file may name. Built-in ones and yours, by one door.

    class Echo:
        type_name = "echo"
        def create_executor(self, *, agent_name, agent_ref, context):
            return EchoAgent(**(agent_ref.config or {}))

    registry = default_registry([Echo()])

What an adapter makes either answers requests (`async call(AgentRequest) -> AgentResult`), or is an *executor*, as the
seed system calls it: `async execute(input_data, context=None, session_id=None)`, and for tool loops
`execute_with_tools(input_data, tools, messages=None, …)`. What an executor gives may be a result, a mapping or text.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flat.agents.executor_result import as_result
from flat.agents.protocol import Agent, AgentRequest, AgentResult
from flat.errors import AgentFailed, BindingError, Location, SpecError, did_you_mean

FLATAGENT = "flatagent"
StreamEventCallback = Callable[[Mapping[str, Any]], Any]
"""Takes the events that an agent outside of us reports while it works."""

_TASK = (
    "{% if input.task is defined %}{{ input.task }}"
    "{% elif input.prompt is defined %}{{ input.prompt }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class AgentRef:
    """What a machine says about one of its agents."""

    type: str
    ref: str | None = None
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AgentAdapterContext:
    """Where an agent is made: what its paths are relative to, and what the machine adds to its config."""

    config_dir: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine_name: str = ""
    profiles_file: str | None = None
    profiles_dict: Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] | None = None
    """Model settings that win over every profile."""
    compat: bool = False
    locate: Callable[[tuple[str, ...]], Location | None] | None = None
    """Where in its file a part of the prompt is written."""
    tool_provider: Any = None
    """What is asked in place of the built-in MCP client."""


class AgentAdapter(Protocol):
    """Makes the agents of one type."""

    type_name: str

    def create_executor(self, *, agent_name: str, agent_ref: AgentRef, context: AgentAdapterContext) -> Any:
        """An agent, or an executor."""
        ...


class AgentExecutor(Protocol):
    """What the seed system's adapters make. `execute_with_tools` is needed for tool loops only."""

    async def execute(
        self, input_data: dict[str, Any], context: dict[str, Any] | None = None, session_id: str | None = None
    ) -> Any: ...


class UnknownAgentType(BindingError, KeyError):
    """No adapter makes agents of this type."""

    def __init__(self, kind: str, known: Iterable[str] = (), agent: str = "") -> None:
        self.kind, self.name, self.known = "agent adapter", kind, tuple(known)
        of = f' (agent "{agent}")' if agent else ""
        Exception.__init__(
            self,
            f"No agent adapter registered for type '{kind}'{of}: {did_you_mean(kind, self.known)} "
            "An adapter of your own is handed over at load: agent_adapters=[MyAdapter()]",
        )

    def __str__(self) -> str:
        return str(self.args[0])


class AgentAdapterRegistry:
    """Adapters by the type they make."""

    def __init__(self, adapters: Iterable[AgentAdapter] | None = None) -> None:
        self._adapters: dict[str, AgentAdapter] = {}
        for adapter in adapters or ():
            self.register(adapter)

    @property
    def types(self) -> tuple[str, ...]:
        """The types that can be made."""
        return tuple(self._adapters)

    def register(self, adapter: AgentAdapter) -> None:
        """Take in an adapter; it replaces the one for the same type."""
        name = getattr(adapter, "type_name", None)
        if not isinstance(name, str) or not callable(getattr(adapter, "create_executor", None)):
            raise BindingError(
                "agent adapter",
                type(adapter).__name__,
                hint="an adapter has an attribute type_name and a method create_executor",
            )
        self._adapters[name] = adapter

    def get(self, type_name: str) -> AgentAdapter:
        """The adapter for a type. Raises `UnknownAgentType`, which is a `KeyError` too."""
        try:
            return self._adapters[type_name]
        except KeyError:
            raise UnknownAgentType(type_name, self._adapters) from None

    def create_executor(self, *, agent_name: str, agent_ref: AgentRef, context: AgentAdapterContext) -> Any:
        """What the adapter for the exact type makes.

        A type without an adapter goes, wrapped into an inline agent with a profile of that type, to a `flatagent`
        adapter of the user's own: such ones serve every type in the seed system.
        """
        if agent_ref.type in self._adapters:
            adapter = self._adapters[agent_ref.type]
        elif self.makes(agent_ref.type):
            adapter, agent_ref = self._adapters[FLATAGENT], _wrapped(agent_ref)
        else:
            raise UnknownAgentType(agent_ref.type, self._adapters, agent_name)
        return adapter.create_executor(agent_name=agent_name, agent_ref=agent_ref, context=context)

    def makes(self, type_name: str) -> bool:
        """Whether there is an adapter for a type."""
        own = self._adapters.get(FLATAGENT)
        return type_name in self._adapters or (own is not None and not isinstance(own, BuiltIn))

    def make(self, name: str, ref: AgentRef, context: AgentAdapterContext) -> Agent:
        """The agent for a reference, whatever its adapter makes."""
        return as_agent(self.create_executor(agent_name=name, agent_ref=ref, context=context), name)


class BuiltIn:
    """An adapter of this package; its module is imported when the first agent of its type is made."""

    def __init__(self, type_name: str, module: str, name: str) -> None:
        self.type_name, self._module, self._name = type_name, module, name

    def create_executor(self, *, agent_name: str, agent_ref: AgentRef, context: AgentAdapterContext) -> Any:
        config = {**_runner_defaults(self.type_name, context), **(agent_ref.config or {})}
        if agent_ref.ref is not None:
            config["ref"] = agent_ref.ref
        return self.maker(config, Path(context.config_dir), name=agent_name)

    @property
    def maker(self) -> Any:
        return getattr(importlib.import_module(f"flat.agents.{self._module}"), self._name)


class FlatAgents(BuiltIn):
    """Agents of prompts and a profile: a model through litellm, or a program that the profile names by its type."""

    def __init__(self) -> None:
        super().__init__(FLATAGENT, "bundle", "build_agent")

    def create_executor(self, *, agent_name: str, agent_ref: AgentRef, context: AgentAdapterContext) -> Any:
        if agent_ref.config is None:
            raise SpecError(f"FlatAgent reference missing ref/config for agent '{agent_name}'")
        return self.maker(
            agent_ref.config,
            catalogue=context.profiles_dict,
            name=agent_name,
            locate=context.locate,
            overrides=context.overrides,
            directory=context.config_dir,
            tool_provider=context.tool_provider,
            compat=context.compat,
        )


class ExecutorAgent:
    """An executor of the seed system's kind, as an agent."""

    def __init__(self, executor: Any, name: str) -> None:
        self.executor, self.name = executor, name

    @property
    def metadata(self) -> Mapping[str, Any]:
        found = getattr(self.executor, "metadata", None)
        return found if isinstance(found, Mapping) else {}

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        with self._watched(request):
            answer = await self._answer(request)
        return as_result(answer, self.name)

    async def _answer(self, request: AgentRequest) -> Any:
        given: dict[str, Any] = {"context": request.context, "session_id": request.session_id}
        if request.tools is None and request.messages is None:
            work = self.executor.execute
            answer = work(dict(request.input), **_accepted(work, given))
        else:
            work = getattr(self.executor, "execute_with_tools", None)
            if work is None:
                raise AgentFailed(
                    f'agent "{self.name}": {type(self.executor).__name__} has no method execute_with_tools, '
                    "which a tool loop needs",
                    code="invalid_request",
                    type="NotImplementedError",
                )
            messages = None if request.messages is None else list(request.messages)
            given |= {"messages": messages}
            answer = work(dict(request.input), list(request.tools or ()), **_accepted(work, given))
        return await answer if inspect.isawaitable(answer) else answer

    @contextlib.contextmanager
    def _watched(self, request: AgentRequest) -> Iterator[None]:
        """Executors that report events have an attribute for whoever wants to hear them."""
        if request.on_event is None or not hasattr(self.executor, "_stream_event_callback"):
            yield
            return
        self.executor._stream_event_callback = request.on_event
        try:
            yield
        finally:
            self.executor._stream_event_callback = None


def as_agent(made: Any, name: str) -> Agent:
    """What an adapter made, as an agent."""
    if callable(getattr(made, "call", None)):
        agent: Agent = made
        return agent
    if callable(getattr(made, "execute", None)):
        return ExecutorAgent(made, name)
    raise BindingError(
        "agent",
        name,
        hint=f"its adapter gave a {type(made).__name__}, which has neither `call` nor `execute`",
    )


def make_agent(
    name: str,
    config: Mapping[str, Any],
    registry: AgentAdapterRegistry | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    tool_provider: Any = None,
) -> Agent:
    """The agent for an entry of a program's `agents`, by the adapter for its type."""
    places, kind = config.get("places") or {}, config.get("type") or FLATAGENT

    def locate(path: tuple[str, ...]) -> Location | None:
        return Location(*places[path[0]]) if path and path[0] in places else None

    inner = dict(config.get("config") or {})
    if kind == FLATAGENT:
        inner = {"spec": FLATAGENT, "data": inner, "metadata": config.get("metadata") or {}}
    context = AgentAdapterContext(
        config_dir=config.get("directory") or str(Path.cwd()),
        settings=config.get("settings") or {},
        machine_name=config.get("machine") or "",
        profiles_dict=_profiles(config.get("catalogue")),
        overrides=overrides,
        compat=bool(config.get("compat")),
        locate=locate,
        tool_provider=tool_provider,
    )
    made_by = registry or default_registry()
    return made_by.make(config.get("name") or name, AgentRef(kind, config.get("ref"), inner), context)


def check_types(agents: Mapping[str, Mapping[str, Any]], registry: AgentAdapterRegistry) -> None:
    """Raise `UnknownAgentType` for the first agent of a program that nothing can make."""
    for name, config in agents.items():
        kind = config.get("type") or FLATAGENT
        if not registry.makes(kind):
            raise UnknownAgentType(kind, registry.types, name)


def _profiles(catalogue: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A catalogue in the form in which the seed system hands it from parents to children."""
    if catalogue is None:
        return None
    profiles = catalogue.get("model_profiles") or {}
    return {"profiles": profiles, "default": catalogue.get("default"), "override": catalogue.get("override")}


def normalize_agent_ref(raw: Any) -> AgentRef:
    """A reference in any form that a file may have it in."""
    if isinstance(raw, AgentRef):
        return raw
    if isinstance(raw, str):
        return AgentRef(FLATAGENT, ref=raw)
    if isinstance(raw, Mapping):
        if isinstance(raw.get("type"), str):
            return AgentRef(raw["type"], raw.get("ref"), raw.get("config"))
        if raw.get("spec") == FLATAGENT:
            return AgentRef(FLATAGENT, config=dict(raw))
    raise SpecError("Invalid agent reference. Expected string path or {type, ref/config}.")


def builtin_adapters() -> list[AgentAdapter]:
    """The adapters of this package. Making the list imports none of what they need."""
    return [
        FlatAgents(),
        BuiltIn("claude-code", "claude_code", "ClaudeCodeAgent"),
        BuiltIn("codex-cli", "codex_cli", "CodexCliAgent"),
        BuiltIn("smolagents", "smolagents", "SmolagentsAgent"),
        BuiltIn("pi-agent", "pi_agent", "PiAgent"),
    ]


def default_registry(adapters: Iterable[AgentAdapter] | None = None) -> AgentAdapterRegistry:
    """The built-in adapters, and the given ones in their place or beside them."""
    return AgentAdapterRegistry([*builtin_adapters(), *(adapters or ())])


def _wrapped(ref: AgentRef) -> AgentRef:
    profile = {"type": ref.type, **({"ref": ref.ref} if ref.ref else {}), **(ref.config or {})}
    data = {"prompt": {"user": _TASK}, "profile": profile}
    return AgentRef(FLATAGENT, config={"spec": FLATAGENT, "spec_version": "4.0.0", "data": data})


def _runner_defaults(kind: str, context: AgentAdapterContext) -> Mapping[str, Any]:
    """`settings.agent_runners.claude_code` and its like: what a machine says for all agents of a type."""
    runners = context.settings.get("agent_runners")
    found = runners.get(kind.replace("-", "_")) if isinstance(runners, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes; older executors know no sessions."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}
