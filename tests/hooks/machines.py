"""Machines for the tests of hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flat
from flat import HooksRegistry, Machine


def machine(states: Mapping[str, Any], hooks: Any, context: Mapping[str, Any] | None = None) -> Machine:
    """A machine of 2.5.0 whose hooks are made by a class or factory."""
    data = {"name": "tested", "context": dict(context or {"n": 0}), "states": dict(states), "hooks": "h"}
    config = {
        "spec": "flatmachine",
        "spec_version": "2.5.0",
        "data": {"settings": {"native_types": True}, **data},
    }
    return flat.load(config=config, hooks=HooksRegistry({"h": hooks}))


TWO_STATES: Mapping[str, Any] = {
    "start": {"type": "initial", "action": "a", "transitions": [{"to": "end"}]},
    "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
}
"""start, with the action `a`, then end."""

FAILING: Mapping[str, Any] = {
    "start": {"type": "initial", "action": "fail", "transitions": [{"to": "end"}]},
    "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
}
