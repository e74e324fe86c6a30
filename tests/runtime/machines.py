"""Machines for the tests of the runtime, as mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flat
from flat import HooksRegistry, Machine

END = {"type": "final", "output": {"n": "{{ context.n }}"}}


def start(to: str) -> dict[str, Any]:
    return {"type": "initial", "transitions": [{"to": to}]}


def config(
    states: Mapping[str, Any], context: Mapping[str, Any] | None = None, **data: Any
) -> dict[str, Any]:
    whole = {"name": "tested", "context": dict(context or {"n": 0}), "states": dict(states), **data}
    return {
        "spec": "flatmachine",
        "spec_version": "2.5.0",
        "data": {"settings": {"native_types": True}, **whole},
    }


def agents(*names: str) -> dict[str, Any]:
    data = {"name": "a", "model": {"provider": "x", "name": "y"}, "system": "s", "user": "u"}
    return {name: {"spec": "flatagent", "spec_version": "2.5.0", "data": data} for name in names}


def machine(
    states: Mapping[str, Any], hooks: Any = None, context: Mapping[str, Any] | None = None, *,
    answering: Mapping[str, Any] | None = None, bindings: Any = None, **data: Any,
) -> Machine:  # fmt: skip
    """A machine whose states are given; `hooks` is a class or factory, `answering` are agents by name."""
    if hooks is not None:
        data["hooks"] = "h"
    if answering:
        data["agents"] = agents(*answering)
    registry = HooksRegistry({"h": hooks} if hooks is not None else {})
    return flat.load(
        config=config(states, context, **data), hooks=registry, agents=answering, bindings=bindings
    )


def acting(*names: str) -> dict[str, Any]:
    """States that do one action each, in a row, named like them."""
    states: dict[str, Any] = {"start": start(names[0] if names else "end")}
    for name, then in zip(names, [*names[1:], "end"], strict=True):
        states[name] = {"action": name, "transitions": [{"to": then}]}
    return {**states, "end": END}
