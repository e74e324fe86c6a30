"""The files of one agent outside of any machine: itself, its prompt, the catalogue that its profile is in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flat.agents.profiles import Catalogue, read_catalogue
from flat.errors import DefinitionError, Location, SpecError
from flat.spec.agent import AgentFile, ProfileFile, ProfilesData, PromptData, PromptFile
from flat.spec.document import Document, mapping
from flat.spec.files import read_capped
from flat.spec.parse import parse
from flat.spec.shape import check_shape
from flat.spec.sources import Part


class InvalidAgent(DefinitionError, ValueError):
    """The configuration of an agent cannot be used."""


class AgentFiles:
    """One agent's configuration with every reference followed."""

    def __init__(self, part: Part, directory: Path, *, compat: bool) -> None:
        self.directory = directory
        self.compat = compat
        self.warnings: list[str] = []
        self.config = part.value
        if self.config.get("spec") != "flatagent":
            said = self.config.get("spec")
            raise InvalidAgent(f"Invalid spec: expected 'flatagent', got {said!r}{_in(part)}")
        if not isinstance(self.config.get("data"), Mapping):
            raise InvalidAgent(f"missing 'data', a mapping{_in(part)}")
        self._check(AgentFile, part)
        self._text = Part(value=mapping(self.config["data"]), document=part.document, path=("data",))
        self.resolved: dict[str, Any] = dict(self._text.value)
        if isinstance(reference := self.resolved.get("prompt"), str):
            self._follow(reference)

    @classmethod
    def find(
        cls,
        config_file: str | Path | None,
        config_dict: Mapping[str, Any] | None,
        config_dir: str | Path | None,
        *,
        compat: bool,
    ) -> AgentFiles:
        """From a path, or from a mapping that stands in for a file in `config_dir`."""
        if config_file is not None:
            path = Path(config_file).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"Configuration file not found: {path}")
            return cls(read_mapping(path), path.resolve().parent, compat=compat)
        directory = Path.cwd() if config_dir is None else Path(config_dir).expanduser()
        document = Document(dict(config_dict or {}))
        return cls(Part(value=document.value, document=document), directory, compat=compat)

    def catalogue(self, explicit: str | Path | None, given: Mapping[str, Any] | None) -> Catalogue:
        """The catalogue that counts: the named file, else `profiles.yml` beside the agent, else the given one."""
        if explicit is not None:
            path = self.directory / Path(explicit).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"Profiles file not found: {path}")
            return self._catalogue_in(path)
        beside = self.directory / "profiles.yml"
        return self._catalogue_in(beside) if beside.is_file() else _catalogue(given)

    def locate(self, keys: tuple[str, ...]) -> Location | None:
        """Where a part of the prompt is written."""
        return self._text.locate(*keys)

    def _follow(self, reference: str) -> None:
        path = self.directory / Path(reference).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"Referenced config file not found: {path}")
        part = read_mapping(path)
        wrapped = "data" in part.value or "spec" in part.value
        self._check(PromptFile if wrapped else PromptData, part)
        self.resolved["prompt"] = part.value
        inner = mapping(part.value.get("data")) if wrapped else part.value
        self._text = Part(value=inner, document=part.document, path=("data",) if wrapped else ())

    def _catalogue_in(self, path: Path) -> Catalogue:
        part = read_mapping(path)
        if part.value:
            self._check(ProfileFile if "data" in part.value or "spec" in part.value else ProfilesData, part)
        return _catalogue(part.value)

    def _check(self, model: Any, part: Part) -> None:
        found, problems = check_shape(model, part, compat=self.compat)
        if found is None:
            raise InvalidAgent(str(SpecError(problems)))
        self.warnings += [str(problem) for problem in problems]


def read_mapping(path: Path) -> Part:
    """The mapping in a YAML or JSON file; an empty file holds an empty one."""
    try:
        document = parse(read_capped(path), str(path))
    except SpecError as error:
        raise InvalidAgent(str(error)) from error
    value = {} if document.value is None else document.value
    if not isinstance(value, Mapping):
        raise InvalidAgent(f"{path} should hold a mapping")
    return Part(value=value, document=document)


def _catalogue(document: Mapping[str, Any] | None) -> Catalogue:
    try:
        return read_catalogue(document)
    except DefinitionError as error:
        raise InvalidAgent(str(error)) from error


def _in(part: Part) -> str:
    return f" in {part.document.file}" if part.document.file else ""
