"""The YAML front end: files to models, models to programs.

Names are imported when they are first used, so that a start from a compiled cache pays for none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flat.spec.check import check_machine
    from flat.spec.document import Document
    from flat.spec.limits import Limits
    from flat.spec.load import load_machine, load_machine_dict
    from flat.spec.sources import AgentSource, CatalogueSource, ChildSource, MachineSource

__all__ = [
    "AgentSource",
    "CatalogueSource",
    "ChildSource",
    "Document",
    "Limits",
    "MachineSource",
    "check_machine",
    "load_machine",
    "load_machine_dict",
]

_HOMES = {
    "AgentSource": "sources",
    "CatalogueSource": "sources",
    "ChildSource": "sources",
    "Document": "document",
    "Limits": "limits",
    "MachineSource": "sources",
    "check_machine": "check",
    "load_machine": "load",
    "load_machine_dict": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
