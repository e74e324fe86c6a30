"""State that is owned outside: a node or pack hands its state to a handler, and hears of every change asked for.

A change for such a *scope* is not applied; the handler is told of it and calls `set_state` for what is to become
visible. Scopes come and go with their instances. What a handler or a callback raises is logged and goes no further.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from flat.errors import CallRefused
from flat.tree.apply import applied, known_pack
from flat.tree.changes import Change, PackPatch, StatePatch
from flat.tree.charter import Charter
from flat.tree.instance import Instance, get_path, pack_state, walk
from flat.tree.messages import Message
from flat.tree.schema import Schema, as_plain
from flat.tree.state import Difference, changed, replaced

_log = logging.getLogger("flat.tree")

Cleanup: TypeAlias = Callable[[], Any]
Handler: TypeAlias = Callable[["ExternalContext"], Cleanup | None]


@dataclass(frozen=True, slots=True)
class ExternalScope:
    """Whose state it is: `node:<instance id>` or `pack:<pack name>`."""

    kind: Literal["node", "pack"]
    name: str

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MutationEvent:
    """A change that was asked for and not applied."""

    scope: ExternalScope
    state: Any
    patch: Mapping[str, Any]
    payload: Change
    message: Message | None
    step: int
    """0 for what came before the first step of a run."""
    seq: int
    """Rises over the life of the machine; numbers may be left out."""
    key: str = ""
    """The same when the event is told again after a crash. Empty where nobody drives the tree."""


OnMutation: TypeAlias = Callable[[Any, MutationEvent], Awaitable[Any] | Any]
OnStep: TypeAlias = Callable[[Any, Sequence[MutationEvent]], Awaitable[Any] | Any]
OnHydrate: TypeAlias = Callable[[Any], Awaitable[Any] | Any]


class ExternalContext:
    """What a handler is given for its scope."""

    def __init__(self, runtime: ExternalStates, scope: ExternalScope) -> None:
        self.scope, self._runtime = scope, runtime
        self.mutations: list[OnMutation] = []
        self.steps: list[OnStep] = []
        self.hydrations: list[OnHydrate] = []

    def get_state(self) -> Any:
        """A copy of the state as the tree has it."""
        return as_plain(self._runtime.state_of(self.scope)[1])

    def set_state(self, value: Any, mode: Literal["patch", "replace"] = "patch") -> None:
        """Make a state visible. Raises `StateError` when it is invalid, `CallRefused` when its owner is gone."""
        self._runtime.set_state(self.scope, value, mode)

    def on_mutation(self, callback: OnMutation) -> None:
        """Be told of every change that is asked for: `callback(state, event)`."""
        self.mutations.append(callback)

    on_instance_message = on_mutation

    def on_step(self, callback: OnStep) -> None:
        """Be told after every step: `callback(step, events)`."""
        self.steps.append(callback)

    def on_hydrate(self, callback: OnHydrate) -> None:
        """Be called with the state right after registration."""
        self.hydrations.append(callback)


@dataclass
class _Registered:
    handler: Handler
    context: ExternalContext
    cleanup: Cleanup | None = None
    events: list[MutationEvent] = field(default_factory=list)


class ExternalStates:
    """The scopes of one tree that are owned outside.

    `root` is the tree; whoever drives it sets it before each call here and reads it, and `changes`, afterwards.
    """

    def __init__(self, charter: Charter, root: Instance[Any]) -> None:
        self.charter, self.root = charter, root
        self.changes: list[Change] = []
        """What handlers made visible since it was last emptied."""
        self.closed = ""
        """Why nothing can be made visible now; empty while it can."""
        self._scopes: dict[str, _Registered] = {}
        self._seq = 0

    async def sync(self) -> None:
        """Register the scopes that are new, and drop those that are gone or have another handler now."""
        wanted = {scope.id: (scope, handler) for scope, handler in wanted_scopes(self.charter, self.root)}
        for key, known in list(self._scopes.items()):
            if key not in wanted or wanted[key][1] is not known.handler:
                await self._drop(key)
        for key, (scope, handler) in wanted.items():
            if key not in self._scopes:
                await self._register(scope, handler)

    async def _register(self, scope: ExternalScope, handler: Handler) -> None:
        context = ExternalContext(self, scope)
        known = _Registered(handler, context)
        self._scopes[scope.id] = known
        try:
            known.cleanup = handler(context)
        except Exception:
            _log.warning(
                "the external state handler of %s failed; the tree keeps the state", scope.id, exc_info=True
            )
            del self._scopes[scope.id]
            return
        for callback in context.hydrations:
            await self._call(scope, callback, context.get_state())

    async def _drop(self, key: str) -> None:
        known = self._scopes.pop(key)
        if known.cleanup is not None:
            await self._call(known.context.scope, known.cleanup)

    async def consume(
        self, change: Change, *, message: Message | None = None, step: int = 0, key: str = ""
    ) -> bool:
        """Tell the owner of a change, if it has one outside. True means: do not apply it."""
        scope = scope_of(change)
        known = self._scopes.get(scope.id) if scope is not None else None
        if known is None or scope is None or not isinstance(change, StatePatch | PackPatch):
            return False
        self._seq += 1
        state = known.context.get_state()
        event = MutationEvent(
            scope=scope,
            state=state,
            patch=change.patch,
            payload=change,
            message=message,
            step=step,
            seq=self._seq,
            key=key,
        )
        known.events.append(event)
        for callback in known.context.mutations:
            await self._call(scope, callback, known.context.get_state(), event)
        return True

    def number_from(self, seq: int) -> None:
        """Give the events to come numbers above this one."""
        self._seq = max(self._seq, seq)

    async def passed(self, changes: Sequence[Change], *, step: int, key: str) -> list[Change]:
        """What is left of changes once their owners have had them, with what those made visible."""
        for number, change in enumerate(changes):
            if not await self.consume(change, step=step, key=f"{key}.{number}"):
                self.root = applied(self.charter, self.root, change)
                self.changes.append(change)
        return self.changes

    async def notify_step(self, step: Any) -> None:
        """Tell every owner that a step is over, and what was asked of it since the one before."""
        for known in list(self._scopes.values()):
            events, known.events = tuple(known.events), []
            for callback in known.context.steps:
                await self._call(known.context.scope, callback, step, events)

    async def dispose(self) -> None:
        """Drop every scope."""
        for key in list(self._scopes):
            await self._drop(key)

    async def _call(self, scope: ExternalScope, callback: Callable[..., Any], *arguments: Any) -> None:
        try:
            result = callback(*arguments)
            if inspect.isawaitable(result):
                await result
        except Exception:
            _log.warning("a callback of the external state %s failed", scope.id, exc_info=True)

    # -- the state itself ---------------------------------------------------------

    def state_of(self, scope: ExternalScope) -> tuple[Schema[Any], Any]:
        """The schema and the state of a scope. Raises `TreeError` when its owner is gone."""
        if scope.kind == "pack":
            pack = known_pack(self.charter, self.root, self.root, scope.name)
            return pack.schema, pack_state((self.root,), pack)
        instance = get_path(self.root, scope.name)[-1]
        return instance.node.schema, instance.state

    def set_state(self, scope: ExternalScope, value: Any, mode: str) -> None:
        """Change the tree and record the change."""
        if mode not in ("patch", "replace"):
            raise CallRefused("bad_setting", f'set_state: mode is "patch" or "replace", got {mode!r}')
        if self.closed:
            raise CallRefused("not_now", f"set_state({scope.id}): {self.closed}")
        schema, state = self.state_of(scope)
        difference = replaced(schema, state, value) if mode == "replace" else changed(schema, state, value)
        change = _record(scope, difference)
        self.root = applied(self.charter, self.root, change)
        self.changes.append(change)

    def is_external(self, scope_id: str) -> bool:
        """Whether a scope is owned outside now."""
        return scope_id in self._scopes


def _record(scope: ExternalScope, difference: Difference) -> StatePatch | PackPatch:
    fields: dict[str, Any] = {"patch": difference.patch, "drop": difference.drop}
    if not isinstance(difference.state, Mapping):
        fields["value"] = difference.state
    if scope.kind == "pack":
        return PackPatch(pack_name=scope.name, **fields)
    return StatePatch(instance_id=scope.name, **fields)


def wanted_scopes(charter: Charter, root: Instance[Any]) -> Iterator[tuple[ExternalScope, Handler]]:
    """The scopes of a tree that are to be owned outside, with their handlers."""
    packs = {pack.name: pack for pack in (*root.packs, *charter.packs)}
    for pack in packs.values():
        if pack.externalize is not None:
            yield ExternalScope("pack", pack.name), pack.externalize
    for instance, _ in walk(root):
        if instance.node.externalize is not None:
            yield ExternalScope("node", instance.id), instance.node.externalize


def scope_of(change: Change) -> ExternalScope | None:
    if isinstance(change, PackPatch):
        return ExternalScope("pack", change.pack_name) if change.owner_id is None else None
    return ExternalScope("node", change.instance_id) if isinstance(change, StatePatch) else None
