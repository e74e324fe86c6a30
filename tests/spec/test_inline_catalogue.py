"""A catalogue of profiles inside the machine's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flat.errors import SpecError
from flat.spec.load import load_machine
from flat.spec.lower import lower

AGENTS = "  agents: {a: {spec: flatagent, data: {model: fast, user: hi}}}\n"
STATES = "  states: {done: {type: final, agent: a}}\n"
PLAIN = "{model_profiles: {fast: {provider: p, name: inside}}, default: fast}"
WRAPPED = "{spec: flatprofiles, data: " + PLAIN + "}"


def loaded(folder: Path, profiles: str) -> Any:
    (folder / "machine.yml").write_text(
        "spec: flatmachine\ndata:\n  name: m\n" + f"  profiles: {profiles}\n" + AGENTS + STATES
    )
    return load_machine(folder / "machine.yml")


@pytest.mark.parametrize("profiles", [PLAIN, WRAPPED])
def test_it_wins_over_the_one_beside_it(tmp_path: Path, profiles: str) -> None:
    (tmp_path / "profiles.yml").write_text("data: {model_profiles: {fast: {name: beside}}}\n")
    source = loaded(tmp_path, profiles)
    assert source.catalogue.profiles["fast"]["name"] == "inside"
    catalogue = lower(source).agents["a"]["catalogue"]
    assert catalogue["model_profiles"]["fast"] == {"provider": "p", "name": "inside"}
    assert catalogue["default"] == "fast"


@pytest.mark.parametrize(
    ("profiles", "place"),
    [
        (
            PLAIN.replace("default: fast", "default: fats"),
            ':4:76: error[unknown-profile]: there is no profile "fats"',
        ),
        (
            WRAPPED.replace("model_profiles", "model_profils"),
            ':4:41: error[unknown-key]: unknown key "model_profils"',
        ),
        ("[fast]", ":4:13: error[type]: profiles should be text or a mapping"),
    ],
)
def test_what_is_wrong_in_it_is_told_at_its_place(tmp_path: Path, profiles: str, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        loaded(tmp_path, profiles)
    assert place in str(caught.value)
