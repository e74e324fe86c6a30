"""Names and the live Python behind them: hooks, agents, verifiers, and the types that may be stored.

A program names code and never holds any; a `Bindings` resolves the names when the program is bound.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.core.storable import CORE_TYPES, Types
from flat.errors import BindingError

Factory = Callable[..., Any]


def standard_types() -> Types:
    """The storable types of the standard library. Add your own with `storable`."""
    types = CORE_TYPES.copy()
    types.register(datetime.datetime, "datetime", _moment_data, _moment)
    types.register(datetime.date, "date", datetime.date.isoformat, datetime.date.fromisoformat)
    types.register(datetime.time, "time", datetime.time.isoformat, datetime.time.fromisoformat)
    types.register(
        datetime.timedelta,
        "timedelta",
        lambda d: [d.days, d.seconds, d.microseconds],
        lambda data: datetime.timedelta(*data),
    )
    types.register(decimal.Decimal, "decimal", str, decimal.Decimal)
    types.register(uuid.UUID, "uuid", str, uuid.UUID)
    types.register(pathlib.PurePosixPath, "posixpath", str, pathlib.PurePosixPath)
    types.register(pathlib.PureWindowsPath, "windowspath", str, pathlib.PureWindowsPath)
    types.register(type(pathlib.Path()), "path", str, pathlib.Path)
    return types


def _moment_data(moment: datetime.datetime) -> Any:
    """ISO text; with the zone's name beside it where there is one, since an offset is no zone."""
    zone = getattr(moment.tzinfo, "key", None)
    return (
        moment.isoformat() if zone is None else [moment.replace(tzinfo=None).isoformat(), zone, moment.fold]
    )


def _moment(data: Any) -> datetime.datetime:
    if isinstance(data, str):
        return datetime.datetime.fromisoformat(data)
    text, zone, fold = data
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold)


def storable(types: Types, cls: type, name: str | None = None) -> None:
    """Allow a pydantic model or an enum of one's own in stored data, under its class name unless told otherwise."""
    name = name or cls.__name__
    if issubclass(cls, enum.Flag):
        types.register(cls, name, lambda member: member.value, cls)
    elif issubclass(cls, enum.Enum):
        types.register(cls, name, lambda member: member.name, lambda data: cls[data])
    elif hasattr(cls, "model_validate"):
        types.register(cls, name, lambda m: m.model_dump(round_trip=True, by_alias=True), cls.model_validate)
    else:
        raise BindingError(
            "storable type", name, hint="only pydantic models and enums are stored by themselves"
        )


@dataclass
class Bindings:
    """Everything that a machine may call by name."""

    hooks: dict[str, Factory] = field(default_factory=dict)
    verifiers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Functions that tell whether an effect in doubt has happened, for the policy `verify:<name>`."""
    types: Types = field(default_factory=standard_types)

    def make_hooks(self, name: str, args: Mapping[str, Any]) -> Any:
        """A new hooks object from the factory registered under the name."""
        factory = self.hooks.get(name)
        if factory is None:
            raise BindingError(
                "hooks object",
                name,
                self.hooks,
                hint="register it with HooksRegistry.register(name, factory)",
            )
        return factory(**args)
