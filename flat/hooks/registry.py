"""Hooks by name: the only way from a name in a machine file to code."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flat.errors import BindingError, DefinitionError, nearest
from flat.hooks.composite import CompositeHooks

BUILT_IN = {
    "logging": "flat.hooks.log:LoggingHooks",
    "metrics": "flat.hooks.metrics:MetricsHooks",
    "webhook": "flat.hooks.webhook:WebhookHooks",
    # Made where hooks and backends meet, which is above this layer: so it is named here and not imported.
    "distributed-worker": "flat.runtime.workers:distributed_worker",
}
"""What is registered from the beginning, imported when it is asked for."""


class HooksRegistry:
    """Hooks by name. A factory (a class, or a function that returns an object) is called once per user of the name.

    `logging`, `metrics`, `webhook` and `distributed-worker` are there from the beginning, and may be replaced.
    """

    def __init__(self, factories: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.factories: dict[str, Callable[..., Any]] = {
            name: _BuiltIn(where) for name, where in BUILT_IN.items()
        }
        for name, factory in (factories or {}).items():
            self.register(name, factory)

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Register, or replace, a factory."""
        if not isinstance(name, str) or not name:
            raise DefinitionError(f"hooks are registered under a name, not under {name!r}")
        if not callable(factory):
            raise DefinitionError(
                f'the hooks "{name}" are registered with a {type(factory).__name__}; '
                "give a class, or a function that returns an object: lambda: hooks"
            )
        self.factories[name] = factory

    def has(self, name: str) -> bool:
        return name in self.factories

    def resolve(self, ref: str | Mapping[str, Any] | Iterable[Any]) -> Any:
        """A new hooks object for `name`, `{name, args}`, or a list of those."""
        if isinstance(ref, str):
            return self._make(ref, {})
        if isinstance(ref, Mapping):
            name, args = ref.get("name"), ref.get("args") or {}
            if not isinstance(name, str):
                raise DefinitionError(f"hooks need a name: {{name: …, args: …}}; there is {sorted(ref)}")
            if not isinstance(args, Mapping):
                raise DefinitionError(
                    f'the args of the hooks "{name}" are a mapping, not {type(args).__name__}'
                )
            return self._make(name, args)
        if isinstance(ref, Iterable):
            return CompositeHooks(*(self.resolve(r) for r in ref))
        raise DefinitionError(
            f"hooks are a name, {{name: …, args: …}}, or a list of those, not {type(ref).__name__}"
        )

    def is_built_in(self, name: str) -> bool:
        """Whether this name means what it means from the beginning."""
        return isinstance(self.factories.get(name), _BuiltIn)

    def _make(self, name: str, args: Mapping[str, Any]) -> Any:
        factory = self.factories.get(name)
        if factory is None:
            hint = "register it with HooksRegistry.register(name, factory)"
            if nearest(name, list(self.factories)):  # a suggestion stands in place of the list
                hint = f"registered are {', '.join(sorted(self.factories))}; {hint}"
            raise BindingError("hooks object", name, self.factories, hint=hint)
        if isinstance(factory, _BuiltIn):
            factory = factory.load()
        try:
            return factory(**args)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # it was called, and something inside went wrong
            given = f"with the args {', '.join(map(str, args))}" if args else "without args"
            raise DefinitionError(f'the hooks "{name}" cannot be made {given}: {error}') from error


class _BuiltIn:
    """A factory that is imported when it is asked for."""

    def __init__(self, where: str) -> None:
        self.where = where

    def load(self) -> Callable[..., Any]:
        module, _, attribute = self.where.partition(":")
        factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return factory

    def __call__(self, **args: Any) -> Any:
        return self.load()(**args)
