"""A machine on another model profile than its files say: its program, rewritten before anything runs.

The choice is in the program, so that it is stored with an execution, and whoever resumes it, in any process, keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flat.agents.profiles import named_instead
from flat.core.program import Program
from flat.core.program_codec import with_digest
from flat.errors import DefinitionError, UnknownName

KEY = "profile"
"""Where the choice is, among a program's settings and in what it says of each child."""
Catalogue = Mapping[str, Any]
"""A catalogue as a program has it: `model_profiles`, `default`, `override`."""


def chosen_profile(program: Program) -> str | None:
    """The profile that a program was put on, or None if it runs as its files say."""
    found: str | None = program.settings.get(KEY)
    return found


def on_profile(
    program: Program, name: str, *, handed: Catalogue | None = None, child: bool = False
) -> Program:
    """The program with every agent, also those of its children, on one profile of its catalogue.

    `handed` is the catalogue of a child's parent: its profile counts where the child's own catalogue has none of that
    name. Raises `UnknownName` with the names there are, or `DefinitionError` if there is no catalogue.
    """
    catalogue = next(_catalogues(program), None)
    profiles: dict[str, Any] = {**(catalogue or {}).get("model_profiles", {})}
    if name not in profiles and handed is not None and name in handed["model_profiles"]:
        profiles[name] = handed["model_profiles"][name]
    if name not in profiles:
        if catalogue is not None:
            raise _unknown(name, profiles)
        _refuse_without_catalogue(program, name, child)
    put = {"model_profiles": profiles, "default": (catalogue or {}).get("default"), "override": None}
    changed = replace(
        program,
        agents={n: _agent(c, name, put) if _asks_a_model(c) else c for n, c in program.agents.items()},
        machines={
            n: ref if "tree" in ref else {**ref, KEY: name, **({"profiles": put} if profiles else {})}
            for n, ref in program.machines.items()
        },
        settings={**program.settings, KEY: name},
    )
    return with_digest(changed)


def _catalogues(program: Program) -> Iterator[Catalogue]:
    yield from (c["catalogue"] for c in program.agents.values() if c.get("catalogue") is not None)
    yield from (ref["profiles"] for ref in program.machines.values() if "profiles" in ref)


def _unknown(name: str, profiles: Catalogue) -> UnknownName:
    """Catalogues are short, so that all there is can be said."""
    error = UnknownName("model profile", name, profiles)
    has = f"it has {', '.join(profiles)}" if profiles else "it is empty"
    error.args = (f'there is no profile "{name}" in the catalogue; {has}',)
    return error


def _asks_a_model(config: Mapping[str, Any]) -> bool:
    return not config.get("problem") and config.get("type", "flatagent") == "flatagent"


def _refuse_without_catalogue(program: Program, name: str, child: bool) -> None:
    """A machine may do without a catalogue if all the models that are asked are asked by its children."""
    asks = any(map(_asks_a_model, program.agents.values()))
    if not asks and (child or any("tree" not in ref for ref in program.machines.values())):
        return
    why = "it has no catalogue; add a profiles.yml beside it" if asks else "it has no agents that ask a model"
    raise DefinitionError(f'machine "{program.name}" cannot run on the profile "{name}": {why}')


def _agent(config: Mapping[str, Any], name: str, catalogue: Catalogue) -> dict[str, Any]:
    inner = config["config"]
    key = "profile" if "prompt" in inner or "profile" in inner else "model"
    reference = named_instead(inner.get(key), name, catalogue["model_profiles"][name])
    return {**config, "config": {**inner, key: reference}, "catalogue": catalogue}
