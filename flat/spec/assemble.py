"""Follows the references of one machine and gathers what was found, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from flat.errors import Location, Problem, SpecError
from flat.spec.agent import AgentFile, ProfileFile, ProfilesData, PromptData, PromptFile
from flat.spec.check import FORGIVEN, check_document
from flat.spec.document import Document, mapping
from flat.spec.files import Files, Refused
from flat.spec.machine import MachineFile
from flat.spec.shape import SPECS, check_shape
from flat.spec.sources import AgentSource, CatalogueSource, ChildSource, MachineSource, Part

M = TypeVar("M", bound=BaseModel)

_PROMPT_KEYS = tuple(PromptData.model_fields)
_CONFIG_SUFFIXES = (".yml", ".yaml", ".json")
_CODED = ("smolagents", "pi-agent")
"""Types of agents whose `ref` names code: a package, or a file with `#name` behind it."""
_CONFIGURED = ("flatagent", "claude-code", "codex-cli")
"""Types of agents whose `ref` can be nothing but a file of options."""


class Assembly:
    """One loading of one machine."""

    def __init__(self, main: Part, files: Files, compat: bool) -> None:
        self.main = main
        self.files = files
        self.compat = compat
        self.problems: list[Problem] = []
        self.documents: list[Document] = []
        self.data: Mapping[str, Any] = mapping(main.value.get("data"))

    def finish(
        self,
        profiles_file: str | os.PathLike[str] | None,
        inherited: Mapping[str, Any] | CatalogueSource | None,
        check: bool,
    ) -> MachineSource:
        """Follow everything, then give the source, or raise all problems at once."""
        self._seen(self.main.document)
        machine = self._shape(MachineFile, self.main)
        agents = {name: self._agent(name, ref) for name, ref in self._entries("agents").items()}
        children = {name: self._child(name, ref) for name, ref in self._entries("machines").items()}
        catalogue = self._catalogue(profiles_file) or self._inherited(inherited)
        if check or machine is None:
            self.problems += check_document(self.main.document, agents, catalogue, self.compat)
        # Without a file to point into, what is wrong in a child would be said twice.
        if check and (machine is not None or self.main.document.file):
            for child in children.values():
                self._inside(child, catalogue)
        problems = in_file_order(self.problems)
        if any(problem.severity == "error" for problem in problems) or machine is None:
            raise SpecError([p for p in problems if p.code != "unheard-action"])  # hooks can wait
        return MachineSource(
            machine=machine,
            document=self.main.document,
            directory=self.files.directory,
            roots=self.files.roots,
            agents=agents,
            catalogue=catalogue,
            machines=children,
            files=self.files.contents,
            compat=self.compat,
            problems=problems,
        )

    def _entries(self, section: str) -> Mapping[str, Any]:
        return mapping(self.data.get(section))

    def _seen(self, document: Document) -> None:
        """Take over what the parser found doubtful, once for each document."""
        if any(known is document for known in self.documents):
            return
        self.documents.append(document)
        for problem in document.problems:
            forgiven = self.compat and problem.code in FORGIVEN
            self.problems.append(replace(problem, severity="warning") if forgiven else problem)

    def _shape(self, model: type[M], part: Part) -> M | None:
        found, problems = check_shape(model, part, compat=self.compat)
        self.problems += problems
        return found

    def _fail(self, code: str, message: str, place: Location | None, hint: str = "") -> None:
        self.problems.append(Problem(code, message, place, hint))

    def _read(self, reference: str, bases: tuple[Path, ...], place: Location | None) -> Part | Problem:
        """The mapping in a file, or why there is none. What its text says joins the problems."""
        try:
            document = self.files.read(self.files.resolve(reference, *bases))
        except Refused as refused:
            return Problem(refused.code, refused.message, place, refused.hint)
        except SpecError as error:
            self.problems += error.problems
            return Problem("unreadable", f"{reference} cannot be read", place)
        self._seen(document)
        value = {} if document.value is None else document.value
        if not isinstance(value, Mapping):
            return Problem("type", f"{reference} should hold a mapping", document.locate(()) or place)
        return Part(value=value, document=document)

    def _agent(self, name: str, ref: Any) -> AgentSource:
        path = ("data", "agents", name)
        here = Part(value=mapping(ref), document=self.main.document, path=path)
        if isinstance(ref, str):
            return self._agent_file(name, ref, here)
        if not isinstance(ref, Mapping):
            return AgentSource(name=name)
        if "spec" in ref or "data" in ref:
            return self._flat_agent(name, here, self.files.directory)
        return self._typed_agent(name, here)

    def _agent_file(self, name: str, ref: str, here: Part) -> AgentSource:
        place = here.locate()
        found = self._read(ref, (self.files.directory,), place)
        if isinstance(found, Problem):
            if found.code == "missing-file" and self._failure_is_expected(name):
                self.problems.append(replace(found, severity="warning"))
                return AgentSource(name=name, problem=found)
            if found.code != "unreadable":
                self.problems.append(found)
            return AgentSource(name=name, problem=found)
        if self._shape(AgentFile, found) is None:
            return AgentSource(name=name)
        return self._flat_agent(name, found, self.files.resolve(ref, self.files.directory).parent)

    def _failure_is_expected(self, agent: str) -> bool:
        """Whether every state that uses an agent says where to go when it fails."""
        users = [state for state in self._entries("states").values() if mapping(state).get("agent") == agent]
        return bool(users) and all(state.get("on_error") for state in users)

    def _flat_agent(self, name: str, part: Part, directory: Path) -> AgentSource:
        data = mapping(part.value.get("data"))
        metadata = mapping(part.value.get("metadata"))
        inside = Part(value=data, document=part.document, path=(*part.path, "data"))
        if "prompt" in data or "profile" in data:
            prompt = self._prompt(inside, directory)
            shape, model = "bundle", data.get("profile")
        else:
            fields = {key: data[key] for key in _PROMPT_KEYS if data.get(key) is not None}
            prompt = Part(value=fields, document=part.document, path=inside.path)
            shape, model = "legacy", data.get("model")
        label = (prompt.value.get("name") if prompt else None) or data.get("name") or metadata.get("name")
        return AgentSource(
            name=name,
            label=str(label or name),
            shape=shape,
            file=part,
            prompt=prompt,
            model=model,
            metadata=metadata,
            directory=directory,
        )

    def _prompt(self, data: Part, directory: Path) -> Part | None:
        ref = data.value.get("prompt")
        found: Part | Problem
        if isinstance(ref, str):
            found = self._read(ref, (directory, self.files.directory), data.locate("prompt"))
        elif isinstance(ref, Mapping):
            found = Part(value=ref, document=data.document, path=(*data.path, "prompt"))
        else:
            return None
        if isinstance(found, Problem):
            if found.code != "unreadable":
                self.problems.append(found)
            return None
        if "data" not in found.value and "spec" not in found.value:
            self._shape(PromptData, found)
            return found
        self._shape(PromptFile, found)
        return Part(
            value=mapping(found.value.get("data")), document=found.document, path=(*found.path, "data")
        )

    def _typed_agent(self, name: str, here: Part) -> AgentSource:
        type_, ref = here.value.get("type"), here.value.get("ref")
        config = dict(mapping(here.value.get("config")))
        if not isinstance(type_, str):
            return AgentSource(name=name)
        file: Part | None = None
        if isinstance(ref, str) and self._is_config_file(type_, ref):
            found = self._read(ref, (self.files.directory,), here.locate("ref"))
            if isinstance(found, Problem):
                if found.code != "unreadable":
                    self.problems.append(found)
                return AgentSource(name=name, type=type_, problem=found)
            if type_ == "flatagent":
                if self._shape(AgentFile, found) is None:
                    return AgentSource(name=name)
                base = self.files.resolve(ref, self.files.directory).parent
                return self._flat_agent(name, found, base)
            config = {**found.value, **config}
            ref, file = None, found
        elif isinstance(ref, str) and type_ in _CODED:
            self._code(ref.partition("#")[0], here.locate("ref"))
        return AgentSource(
            name=name,
            type=type_,
            label=name,
            file=file,
            config=config,
            ref=ref,
            directory=self.files.directory,
        )

    def _code(self, path: str, place: Location | None) -> None:
        """Code that runs as an agent must lie where other files of the project may."""
        if not _looks_like_file(path) and not path.endswith((".py", ".js", ".mjs")):
            return
        try:
            self.files.resolve(path, self.files.directory)
        except Refused as refused:
            self._fail(refused.code, refused.message, place, refused.hint)

    def _is_config_file(self, type_: str, ref: str) -> bool:
        """Whether a `ref` is a file of options; for a kind that runs code it may name that code."""
        if ref.endswith(_CONFIG_SUFFIXES):
            return True
        if type_ not in _CONFIGURED:
            return False
        return _looks_like_file(ref) or (self.files.directory / ref).is_file()

    def _child(self, name: str, ref: Any) -> ChildSource:
        if isinstance(ref, str):
            try:
                return ChildSource(name=name, path=self.files.resolve(ref, self.files.directory))
            except Refused as refused:
                place = self.main.locate("data", "machines", name)
                self._fail(refused.code, refused.message, place, refused.hint)
        value = mapping(ref)
        if "tree" in value:
            return ChildSource(name=name, tree=value)
        return ChildSource(name=name, inline=value)

    def _inside(self, child: ChildSource, catalogue: CatalogueSource | None) -> None:
        """Check a machine that is written in this file. One in a file of its own is read when it is run."""
        if not child.inline:
            return
        document = replace(self.main.document, value=child.inline, problems=())
        part = Part(value=child.inline, document=document)
        lenient = mapping(mapping(child.inline.get("data")).get("settings")).get("compat", False)
        nested = Assembly(part, self.files, self.compat or bool(lenient))
        try:
            self.problems += nested.finish(None, catalogue, check=True).problems
        except SpecError as error:
            self.problems += error.problems

    def _catalogue(self, explicit: str | os.PathLike[str] | None) -> CatalogueSource | None:
        """The catalogue the caller names, or the one the file names or holds, or `profiles.yml` beside the machine."""
        if explicit is not None:
            return self._unwrapped(self._named_by_caller(Path(explicit)))
        named = self.data.get("profiles")
        if isinstance(named, Mapping):
            path = (*self.main.path, "data", "profiles")
            return self._unwrapped(Part(value=named, document=self.main.document, path=path))
        place: Location | None = None
        if isinstance(named, str):
            ref, place = named, self.main.locate("data", "profiles")
        elif (self.files.directory / "profiles.yml").is_file():
            ref = "profiles.yml"
        else:
            return None
        found = self._read(ref, (self.files.directory,), place)
        if isinstance(found, Problem):
            if found.code != "unreadable":
                self.problems.append(found)
            return None
        return self._unwrapped(found)

    def _inherited(self, catalogue: Mapping[str, Any] | CatalogueSource | None) -> CatalogueSource | None:
        if catalogue is None or isinstance(catalogue, CatalogueSource):
            return catalogue
        return self._unwrapped(Part(value=catalogue, document=Document(dict(catalogue))))

    def _named_by_caller(self, path: Path) -> Part:
        """A catalogue that code names may be anywhere; paths written in files may not."""
        path = Path(os.path.realpath(self.files.directory / path.expanduser()))
        document = self.files.read(path)
        self._seen(document)
        return Part(value=mapping(document.value), document=document)

    def _unwrapped(self, part: Part) -> CatalogueSource | None:
        if "data" in part.value or part.value.get("spec") in SPECS:
            if self._shape(ProfileFile, part) is None:
                return None
            path = (*part.path, "data")
            part = Part(value=mapping(part.value.get("data")), document=part.document, path=path)
        elif self._shape(ProfilesData, part) is None:
            return None
        return CatalogueSource(
            profiles={k: mapping(v) for k, v in mapping(part.value.get("model_profiles")).items()},
            default=part.value.get("default"),
            override=part.value.get("override"),
            part=part,
        )


def _looks_like_file(ref: str) -> bool:
    starts = os.path.isabs(ref) or ref.startswith(("./", "../", "~"))
    return starts or os.sep in ref or ref.endswith((".yml", ".yaml", ".json"))


def in_file_order(problems: list[Problem]) -> list[Problem]:
    """Problems sorted by file (in the order of first mention), line and column, without repetition."""
    order: dict[str, int] = {}
    for problem in problems:
        order.setdefault(problem.location.file if problem.location else "", len(order))

    def place(problem: Problem) -> tuple[int, int, int]:
        at = problem.location
        return (order[at.file], at.line, at.column) if at else (order[""], 0, 0)

    return sorted(dict.fromkeys(problems), key=place)
