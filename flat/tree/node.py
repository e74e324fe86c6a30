"""Nodes: what an instance is told, may do, and may become.

    desk = Node(
        name="desk",
        instructions="Plan the trip.",
        validator=Desk,
        initial_state=Desk(),
        tools=[add_leg],
        transitions={"watch": watch},
    )

Everything is checked when the node is made. A node's identity is its `id`: a copy made with
`dataclasses.replace` keeps it, and therefore still counts as the node that the charter has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias
from uuid import uuid4

import orjson
from typing_extensions import TypeVar

from flat.core.op import UNSET, Unset
from flat.errors import CharterError, StateError, did_you_mean
from flat.tree.commands import Command, as_command
from flat.tree.context import CommandContext, ToolContext
from flat.tree.instructions import Instructions, checked_instructions
from flat.tree.machines import MachineUse
from flat.tree.messages import Message
from flat.tree.naming import named
from flat.tree.pack import Pack, initial_value
from flat.tree.schema import Schema, as_schema
from flat.tree.tools import ToolEntry, as_tool
from flat.tree.transitions import TransitionEntry, as_transition

S = TypeVar("S", default=Any)

HistoryPolicy: TypeAlias = Literal["shared", "own", "since_spawn"] | Callable[..., list[Message]]
"""Which messages an instance sees: all, its own, all since it was spawned, or what a function keeps."""
OnEndTurn: TypeAlias = Literal["cede", "nudge", "keep", "error"]
"""What follows when a worker ends its turn without ceding."""
HISTORY = ("shared", "own", "since_spawn")
ON_END_TURN = ("cede", "nudge", "keep", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """Model settings. What is None is the executor's own."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        _check_type("model", self.model, str)
        _check_type("max_tokens", self.max_tokens, int)
        _check_type("temperature", self.temperature, int | float)

    def over(self, default: ExecutorConfig) -> ExecutorConfig:
        """These settings where they are given, else the default's, one by one."""
        return ExecutorConfig(
            model=default.model if self.model is None else self.model,
            max_tokens=default.max_tokens if self.max_tokens is None else self.max_tokens,
            temperature=default.temperature if self.temperature is None else self.temperature,
        )


NodeConfig = ExecutorConfig


class Output(Generic[S]):
    """Structured output: the schema that the model's answer has to follow, and what is made of each text of it.

    Without a mapper the text is read as JSON and checked by the schema. A mapper that is to survive being
    stored inline is registered in the charter under a name.
    """

    def __init__(self, schema: Any, map_text_block: Callable[[str], Any] | None = None) -> None:
        self.schema: Schema[S] = as_schema(schema)
        self.map_text_block = map_text_block

    def map(self, text: str) -> Any:
        """The application's value for one text of the answer. Raises `StateError` when the text is no such value."""
        if self.map_text_block is not None:
            return self.map_text_block(text)
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise StateError(f"the answer is not JSON: {error}", code="bad_output") from None
        return self.schema.validate(value)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Node(Generic[S]):
    """A blueprint of instances."""

    instructions: Instructions
    validator: type[S] | Schema[S] | Mapping[str, Any]
    name: str | None
    tools: Mapping[str, ToolEntry]
    transitions: Mapping[str, TransitionEntry]
    commands: Mapping[str, Command[..., Any]]
    initial_state: Any
    packs: tuple[Pack[Any], ...]
    executor_config: ExecutorConfig | None
    output: Output[Any] | None
    worker: bool
    externalize: Callable[..., Any] | None
    pack_boundary: frozenset[str]
    """Packs that have a state of their own from this node down."""
    history: HistoryPolicy | None
    on_end_turn: OnEndTurn
    max_steps: int | None
    """Model calls that one instance may make before it has to cede; for workers."""
    build_system_prompt: Callable[..., str] | None
    """Makes the whole system prompt of this node from a `PromptContext`."""
    machine: MachineUse | None
    """The machine that does this node's work, instead of a model."""
    id: str
    schema: Schema[S] = field(init=False)

    def __init__(
        self,
        instructions: Instructions,
        validator: type[S] | Schema[S] | Mapping[str, Any] = dict,  # type: ignore[assignment]
        *,
        name: str | None = None,
        tools: Mapping[str, Any] | Iterable[Any] | None = None,
        transitions: Mapping[str, Any] | Iterable[Any] | None = None,
        commands: Mapping[str, Any] | Iterable[Any] | None = None,
        initial_state: S | Mapping[str, Any] | Unset = UNSET,
        packs: Iterable[Pack[Any]] | None = None,
        executor_config: ExecutorConfig | Mapping[str, Any] | None = None,
        output: Output[Any] | None = None,
        worker: bool = False,
        externalize: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
        pack_boundary: Iterable[str] = (),
        history: HistoryPolicy | None = None,
        on_end_turn: OnEndTurn = "cede",
        max_steps: int | None = None,
        build_system_prompt: Callable[..., str] | None = None,
        machine: MachineUse | None = None,
        id: str | None = None,
    ) -> None:
        where = f'node "{name}"' if name else f"node {_start(instructions)!r}"
        put = object.__setattr__
        put(self, "instructions", checked_instructions(instructions, where))
        put(self, "validator", validator)
        put(self, "schema", as_schema(validator))
        put(self, "name", name)
        put(self, "tools", named(tools, "tool", where, lambda e, k: as_tool(e, k, where, ToolContext)))
        put(
            self,
            "transitions",
            named(transitions, "transition", where, lambda e, k: as_transition(e, k, where)),
        )
        put(self, "commands", named(commands, "command", where, lambda e, k: as_command(e, k, where)))
        if validator is dict and initial_state is UNSET:
            initial_state = {}  # a node without a model of its state has none to be asked for
        put(self, "initial_state", initial_value(initial_state, self.schema, where))
        put(self, "packs", _packs(packs, where))
        put(self, "executor_config", _config(executor_config, where))
        put(self, "output", output)
        put(self, "worker", worker)
        put(self, "externalize", externalize["state"] if isinstance(externalize, Mapping) else externalize)
        put(self, "pack_boundary", frozenset(pack_boundary))
        put(self, "history", _one_of(history, HISTORY, "history", where))
        put(self, "on_end_turn", _one_of(on_end_turn, ON_END_TURN, "on_end_turn", where))
        put(self, "max_steps", max_steps)
        put(self, "build_system_prompt", build_system_prompt)
        put(self, "machine", machine)
        put(self, "id", str(uuid4()) if id is None else id)
        self._check(where)

    def _check(self, where: str) -> None:
        for command in self.commands.values():
            for part in command.signature.injected if command.signature else ():
                if part.context is not None and not issubclass(CommandContext, part.context):
                    raise CharterError(
                        "wrong_context",
                        f'{where}: the command "{command.name}" asks for a {part.context.__name__}, and gets a '
                        f"CommandContext here; annotate `{part.name}` with that",
                    )

    def __repr__(self) -> str:
        return f"Node({self.label!r})"

    @property
    def label(self) -> str:
        """What people call it: its name, else how its instructions begin."""
        return self.name or _start(self.instructions)

    @property
    def sees(self) -> HistoryPolicy:
        """Which messages its instances see: what was chosen, else their own for workers and all for others."""
        return self.history or ("own" if self.worker else "shared")

    def first_state(self) -> Any:
        """A fresh copy of the initial state, validated; `UNSET` when there is none."""
        return UNSET if self.initial_state is UNSET else self.schema.validate(self.initial_state)


def machine_node(
    program: str,
    validator: type[S] | Schema[S] | Mapping[str, Any] = dict,  # type: ignore[assignment]
    *,
    name: str | None = None,
    initial_state: S | Mapping[str, Any] | Unset = UNSET,
    input: Callable[[Any], Mapping[str, Any]] | None = None,
    cede: Callable[[Any], Any] | None = None,
) -> Node[S]:
    """A worker whose work a machine does: its state is the input, and what comes out is ceded to the parent."""
    return Node(
        f'Runs the machine "{program}".',
        validator,
        name=name or program,
        worker=True,
        initial_state=initial_state,
        machine=MachineUse(program, input, cede),
    )


def create_worker_node(
    instructions: Instructions,
    validator: type[S] | Schema[S] | Mapping[str, Any] = dict,  # type: ignore[assignment]
    **options: Any,
) -> Node[S]:
    """A node that runs beside the primary and has no packs; any that are given are left out."""
    return Node(instructions, validator, worker=True, **{**options, "packs": None})


def _packs(packs: Iterable[Pack[Any]] | None, where: str) -> tuple[Pack[Any], ...]:
    found = tuple(packs or ())
    names = [pack.name for pack in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CharterError("duplicate_name", f'{where}: two packs have the name "{twice}"; rename one')
    return found


def _config(config: ExecutorConfig | Mapping[str, Any] | None, where: str) -> ExecutorConfig | None:
    if not isinstance(config, Mapping):
        return config
    known = {
        "model": "model",
        "max_tokens": "max_tokens",
        "maxTokens": "max_tokens",
        "temperature": "temperature",
    }
    for key in config:
        if key not in known:
            raise CharterError(
                "executor_config_type",
                f'{where}: unknown executor setting "{key}"; {did_you_mean(str(key), known)}',
            )
    return ExecutorConfig(**{known[key]: value for key, value in config.items()})


def _check_type(name: str, value: Any, expected: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, expected)):
        raise CharterError(
            "executor_config_type", f"executor setting `{name}` cannot be {value!r}, a {type(value).__name__}"
        )


def _one_of(value: Any, allowed: tuple[str, ...], what: str, where: str) -> Any:
    if value is not None and not callable(value) and value not in allowed:
        raise CharterError(
            "bad_setting", f"{where}: {what} cannot be {value!r}; {did_you_mean(str(value), allowed)}"
        )
    return value


def _start(instructions: Any) -> str:
    text = instructions if isinstance(instructions, str) else getattr(instructions, "__name__", "")
    return text if len(text) <= 40 else text[:37] + "..."
