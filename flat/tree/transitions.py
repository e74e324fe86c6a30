"""Transitions: how a model changes the tree, as a node declares them.

    @transition("Start a fare watch")
    def watch(state: Desk, leg: str) -> Spawn:
        return spawn(fare_watch, {"leg": leg})

Of the function's parameters, `state` is the instance's state (as the annotated model, else as plain data),
`reason` is the model's reason, and one annotated `TransitionContext` is both args and reason. All others are
arguments that the model gives. A transition belongs to its node alone and is not inherited by children.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, overload

from typing_extensions import ParamSpec, TypeVar

from flat.core.op import UNSET
from flat.errors import CharterError
from flat.tree.context import TransitionContext
from flat.tree.naming import Ref, provider_name
from flat.tree.results import TransitionResult
from flat.tree.schema import JsonObject, Schema, as_schema, is_object_schema, json_schema_or_open, top_level
from flat.tree.signature import Signature, decorated, read_signature

if TYPE_CHECKING:
    from flat.tree.node import Node

P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)


class CodeTransition(Generic[P, R]):
    """A transition that code decides. Made by `@transition`, or from a function of `(state, context)`."""

    type: ClassVar[str] = "code"

    def __init__(
        self,
        description: str,
        execute: Callable[..., Any],
        arguments: Any = None,
        *,
        name: str | None = None,
        signature: Signature[Any] | None = None,
    ) -> None:
        self.description, self.execute, self.name, self.signature = description, execute, name, signature
        self.schema: Schema[Any] | None = as_schema(arguments) if arguments is not None else None
        if signature is not None and signature.has_arguments:
            self.schema = signature.arguments
        where = f'transition "{name}"' if name else f'transition "{description}"'
        if self.schema is not None and "reason" in _properties(self.schema):
            raise CharterError(
                "reserved_name",
                f"{where}: an argument cannot be called `reason`; every transition has one already",
            )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.execute(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"CodeTransition({self.name or self.description!r})"

    def invoke(self, state: Any, arguments: Any, reason: str) -> Any:
        """Call the function with parsed arguments. May return an awaitable."""
        context = TransitionContext(arguments, reason)
        if self.signature is None:
            return self.execute(state, context)
        return self.signature.call(
            arguments if self.signature.has_arguments else {},
            {"state": state, "reason": reason, "ctx": context},
        )


class SerialTransition:
    """A transition to one fixed node, in its initial state. Arguments are shown to the model and then ignored."""

    type: ClassVar[str] = "serial"

    def __init__(
        self, node: Node[Any] | Ref | str, description: str, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.node: Node[Any] | Ref = Ref(node) if isinstance(node, str) else node
        self.description, self.arguments = description, arguments
        self.name: str | None = None

    def __repr__(self) -> str:
        return f"SerialTransition({self.description!r})"


class GeneralTransition:
    """A transition to a node that the model itself defines."""

    type: ClassVar[str] = "general"

    def __init__(self, description: str) -> None:
        self.description = description
        self.name: str | None = None

    def __repr__(self) -> str:
        return f"GeneralTransition({self.description!r})"


Transition: TypeAlias = CodeTransition[..., Any] | SerialTransition | GeneralTransition
TransitionEntry: TypeAlias = Transition | Ref


@overload
def transition(fn: Callable[P, R], /) -> CodeTransition[P, R]: ...
@overload
def transition(
    description: str | None = None, /, *, name: str | None = None
) -> Callable[[Callable[P, R]], CodeTransition[P, R]]: ...
def transition(first: Any = None, /, **options: Any) -> Any:
    """Make a transition of a function: `@transition` or `@transition("what it does")`."""
    return decorated(transition_of, first, options)


def transition_of(
    fn: Callable[..., Any],
    frame: FrameType | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
) -> CodeTransition[..., Any]:
    """A transition that reads its arguments from a function."""
    signature = read_signature(
        fn,
        contexts={TransitionContext: "ctx"},
        names={"state": "state", "reason": "reason"},
        frame=frame,
        what="transition",
    )
    return CodeTransition(
        description or signature.description, fn, name=name or signature.name, signature=signature
    )


def create_transition(
    from_node: Node[Any] | None = None,
    /,
    *,
    description: str,
    execute: Callable[..., TransitionResult | Any],
    arguments: Any = None,
) -> CodeTransition[..., Any]:
    """A transition from a function of `(state, context)`. The node is taken for the sake of typing alone."""
    return CodeTransition(description, execute, arguments)


def as_transition(entry: Any, key: str | None, where: str) -> TransitionEntry:
    """Whatever an author may list as a transition: one of the three kinds, a ref, or a plain function."""
    if isinstance(entry, Mapping) and isinstance(entry.get("ref"), str):
        entry = Ref(entry["ref"])
    if not isinstance(entry, Ref | CodeTransition | SerialTransition | GeneralTransition):
        if not callable(entry):
            raise CharterError(
                "not_a_transition",
                f"{where}: {entry!r} is no transition; decorate a function with `@transition`",
            )
        entry = transition_of(entry, name=key)
    found: TransitionEntry = entry
    if key is not None and not isinstance(found, Ref) and transition_has_arguments(found):
        provider_name(f"transition_{key}", where)
    return found


def transition_has_arguments(entry: Transition) -> bool:
    """Whether the model calls it by a tool of its own, because it has something to give."""
    if isinstance(entry, CodeTransition):
        return entry.schema is not None
    return isinstance(entry, GeneralTransition) or entry.arguments is not None


def argument_schema(entry: CodeTransition[..., Any]) -> tuple[JsonObject, bool]:
    """The JSON Schema of a transition's arguments, and whether it is that of an object."""
    schema = json_schema_or_open(entry.schema) if entry.schema is not None else {"type": "object"}
    return schema, is_object_schema(schema)


def parsed_arguments(entry: CodeTransition[..., Any], given: Mapping[str, Any]) -> Any:
    """The arguments of a call, checked. Raises `StateError` where the schema refuses them."""
    if entry.schema is None:
        return {}
    values: Any = {key: value for key, value in given.items() if key != "reason"}
    if not argument_schema(entry)[1]:
        values = values.get("args", UNSET)
        values = None if values is UNSET else values
    return entry.schema.parse(values)


def _properties(schema: Schema[Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = top_level(json_schema_or_open(schema)).get("properties", {})
    return found
