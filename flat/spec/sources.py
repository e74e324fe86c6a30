"""What loading gives: parsed files with everything they refer to. Importing this module takes no pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flat.errors import Location, Problem
from flat.spec.document import Document, Step

if TYPE_CHECKING:
    from flat.spec.machine import MachineFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A mapping inside a document: where a prompt, an agent or a catalogue is written down."""

    value: Mapping[str, Any]
    document: Document
    path: tuple[Step, ...] = ()

    def locate(self, *path: Step, key: bool = False) -> Location | None:
        """The place of something inside this part."""
        return self.document.locate((*self.path, *path), key=key)

    def locate_in(self, *path: Step, offset: int = 0) -> Location | None:
        """The place of a character of a text inside this part."""
        return self.document.locate_in((*self.path, *path), offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSource:
    """One entry of `agents`, with its files read.

    `type` is `flatagent`, or the type of a typed reference (then `config` holds its options and `ref` the
    name that was not a file). `prompt` holds the fields `system`, `user`, `output`, … of either shape; a
    prompt file is already read. `model` is the legacy `model` or the bundle's `profile`, as written: a
    profile's name, a mapping, or None. `problem` is set when the agent cannot be loaded but every state that
    uses it has `on_error`.
    """

    name: str
    type: str = "flatagent"
    label: str = ""
    """The agent's own name, for logs."""
    shape: str = "legacy"
    """`legacy` or `bundle`."""
    file: Part | None = None
    prompt: Part | None = None
    model: str | Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    ref: str | None = None
    directory: Path = Path()
    """What further paths of the agent are relative to."""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueSource:
    """A profile catalogue, unwrapped."""

    profiles: Mapping[str, Mapping[str, Any]]
    default: str | None
    override: str | None
    part: Part
    """The mapping that has `model_profiles`, for locations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSource:
    """One entry of `machines`: a file that exists but is not read, an inline machine, or a tree."""

    name: str
    path: Path | None = None
    inline: Mapping[str, Any] | None = None
    tree: Mapping[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class MachineSource:
    """A machine with all its files read and its shape checked."""

    machine: MachineFile
    document: Document
    directory: Path
    """What paths in the file are relative to."""
    roots: tuple[Path, ...]
    agents: dict[str, AgentSource]
    catalogue: CatalogueSource | None
    machines: dict[str, ChildSource]
    files: dict[str, bytes]
    """All that was read, by path relative to the first root, for content-addressing."""
    compat: bool = False
    problems: list[Problem] = field(default_factory=list)
    """Warnings found while loading."""

    def locate(self, *path: Step, key: bool = False) -> Location | None:
        """The place of something in the machine file, for example `locate("data", "states", "done")`."""
        return self.document.locate(path, key=key)

    def locate_in(self, *path: Step, offset: int = 0) -> Location | None:
        """The place of a character of a text in the machine file, also inside a block scalar."""
        return self.document.locate_in(path, offset)
