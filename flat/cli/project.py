"""`flat.toml`, the project file beside a machine: what to run, and which Python belongs to it.

    [run]
    machine = "config/machine.yml" # or a charter: "desk.py:charter"
    input = {target = "Hello, World!"}
    input_files = {log = "log.txt"}    # inputs that are the texts of files
    max_agent_calls = 20

    [hooks]                        # the only way from a name in a machine file to code
    my-hooks = "hooks.py:MyHooks"  # or "package.module:MyHooks"

    [verifiers]                    # tell whether an effect with `in_doubt: verify:paid` has happened
    paid = "ledger.py:paid"

    [model]
    script = "script.yml"          # answers when there is no key for the real model

Paths are relative to the file.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flat.bindings import Bindings
from flat.errors import DefinitionError, Location, Problem, SpecError, did_you_mean
from flat.hooks import HooksRegistry

NAME = "flat.toml"
_WORDS = {str: "text", int: "a number", dict: "a table"}
_REFERENCE = re.compile(r"[\w.\-]+:[A-Za-z_]\w*")
_KEYS: dict[str, dict[str, type]] = {
    "run": {"machine": str, "input": dict, "input_files": dict, "max_steps": int, "max_agent_calls": int},
    "model": {"script": str},
}
_NAMES = {"hooks": "Class", "verifiers": "function"}
"""Tables of references to code, and what a reference names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A machine file, and what its project file says about it."""

    machine: Path
    folder: Path
    """What the paths of the project file are relative to."""
    file: Path | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    max_agent_calls: int | None = None
    hooks: Mapping[str, str] = field(default_factory=dict)
    verifiers: Mapping[str, str] = field(default_factory=dict)
    script: Path | None = None
    charter: bool = False
    """True when the machine is no file, but a charter by its reference."""

    def registry(self) -> HooksRegistry:
        """The hooks by name. Their code is imported when a machine asks for them, not before."""
        registry = HooksRegistry()
        for name, where in self.hooks.items():
            registry.register(name, _factory(name, where, self.folder))
        return registry

    def bindings(self) -> Bindings:
        """The verifiers by name. Their code is imported when one of them is asked."""
        return Bindings(
            verifiers={name: _verifier(name, where, self.folder) for name, where in self.verifiers.items()}
        )


def find_project(given: Path) -> Project:
    """The machine that a path means: a machine file, a folder, or a project file."""
    from flat.spec.files import find_machine

    given = given.expanduser()
    if is_reference(given):
        file = given.parent / NAME
        data = _read(file) if file.is_file() else {}
        return (
            _project(given, file, data) if data else Project(machine=given, folder=given.parent, charter=True)
        )
    if given.name == NAME:
        given = given.parent
    if (given / NAME).is_file():
        data = _read(given / NAME)
        named = data.get("run", {}).get("machine")
        if named and is_reference(given / named):
            return _project(given / named, given / NAME, data)
        machine = find_machine(given / named if named else given)
        return _project(machine, given / NAME, data)
    machine = find_machine(given)
    for folder in _above(machine, given):
        if (folder / NAME).is_file():
            return _project(machine, folder / NAME, _read(folder / NAME))
    return Project(machine=machine, folder=machine.parent)


def is_reference(path: Path) -> bool:
    """Whether a path is no file but names a charter: `package.module:name` or `folder/file.py:name`."""
    return _REFERENCE.fullmatch(path.name) is not None and not path.exists()


def _above(machine: Path, given: Path) -> Iterator[Path]:
    """Where a project file may stand: beside the machine, and above it as far as the path given."""
    yield machine.parent
    if given.is_dir():
        yield from (folder for folder in machine.parent.parents if folder.is_relative_to(given))
    elif machine.parent.name == "config":
        yield machine.parent.parent


def _project(machine: Path, file: Path, data: Mapping[str, Any]) -> Project:
    run = data.get("run", {})
    named = run.get("machine")
    # What is said about one machine does not hold for another one beside it.
    if named and (file.parent / named).resolve() != machine.resolve():
        run = {}
    script = data.get("model", {}).get("script")
    return Project(
        machine=machine, folder=file.parent, file=file, hooks=data.get("hooks", {}),
        verifiers=data.get("verifiers", {}),
        input={**_texts(run.get("input_files", {}), file), **run.get("input", {})},
        max_agent_calls=run.get("max_agent_calls"),
        max_steps=run.get("max_steps"),
        script=file.parent / script if script else None, charter=is_reference(machine),
    )  # fmt: skip


def _texts(files: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Inputs that are the texts of files."""
    texts = {}
    for name, path in files.items():
        try:
            texts[name] = (file.parent / str(path)).read_text(encoding="utf-8")
        except OSError as error:
            said = f"{file}: run.input_files.{name}: cannot read {path}: {error.strerror}"
            raise SpecError(Problem("project", said)) from None
        except UnicodeDecodeError:
            said = f"{file}: run.input_files.{name}: {path} is not UTF-8 text"
            raise SpecError(Problem("project", said)) from None
    return texts


def _read(file: Path) -> Mapping[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise SpecError(Problem("project", f"cannot read {file}: {error.strerror}")) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(Problem("project", f"{file} is not TOML: {error}")) from None
    problems = list(_problems(data, text, file))
    if problems:
        raise SpecError(problems)
    return data


def _problems(data: Mapping[str, Any], text: str, file: Path) -> Iterator[Problem]:
    for table, content in data.items():
        if table not in (*_KEYS, *_NAMES):
            hint = did_you_mean(table, [*_KEYS, *_NAMES])
            yield Problem("project", f'unknown table "{table}"', _place(table, text, file), hint)
        elif not isinstance(content, dict):
            yield Problem("project", f'"{table}" is not a table', _place(table, text, file))
        elif table in _NAMES:
            yield from _name_problems(table, content, text, file)
        else:
            yield from _key_problems(_KEYS[table], table, content, text, file)


def _name_problems(table: str, content: Mapping[str, Any], text: str, file: Path) -> Iterator[Problem]:
    for name, where in content.items():
        if not isinstance(where, str) or ":" not in where:
            hint = f'write "file.py:{_NAMES[table]}" or "module:{_NAMES[table]}"'
            said = f'"{name}" in [{table}] does not say where it is'
            yield Problem("project", said, _place(name, text, file), hint)


def _key_problems(
    known: Mapping[str, type], table: str, content: Mapping[str, Any], text: str, file: Path
) -> Iterator[Problem]:
    for key, value in content.items():
        wanted = known.get(key)
        if wanted is None:
            hint = did_you_mean(key, known)
            yield Problem("project", f'unknown key "{key}" in [{table}]', _place(key, text, file), hint)
        elif not isinstance(value, wanted) or isinstance(value, bool):
            yield Problem("project", f'"{key}" in [{table}] is not {_WORDS[wanted]}', _place(key, text, file))


def _place(name: str, text: str, file: Path) -> Location | None:
    """Where a name stands in the file, as far as a look at the lines tells."""
    pattern = re.compile(rf"\s*(?:\[\s*)?[\"']?({re.escape(name)})[\"']?\s*(?:=|\]|\.)")
    for number, line in enumerate(text.splitlines(), 1):
        if match := pattern.match(line):
            return Location(file.as_posix(), number, match.start(1) + 1, line, len(name))
    return None


def _factory(name: str, where: str, folder: Path) -> Any:
    def make(**args: Any) -> Any:
        with _made(f'the hooks "{name}" ({where}) cannot be made'):
            return _named(where, folder)(**args)

    return make


def _verifier(name: str, where: str, folder: Path) -> Any:
    def ask(key: str, effect: Any) -> Any:
        with _made(f'the verifier "{name}" ({where}) cannot be imported'):
            function = _named(where, folder)
        return function(key, effect)

    return ask


def _named(where: str, folder: Path) -> Any:
    from flat.runtime.machine import from_module

    home = str(folder.resolve())
    if home not in sys.path:  # code imports what stands beside it
        sys.path.insert(0, home)
    return from_module(where, folder)


@contextlib.contextmanager
def _made(failed: str) -> Iterator[None]:
    """What goes wrong in here is the project's fault, and `failed` says what it was about."""
    try:
        yield
    except DefinitionError:
        raise
    except Exception as error:
        if getattr(error, "exit_code", None) is not None:
            raise
        raise DefinitionError(f"{failed}: {type(error).__name__}: {error}") from error
