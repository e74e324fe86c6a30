"""Machines on another profile: what becomes of what their agents name, and of their children."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flat.agents.bundle import model_settings
from flat.errors import DefinitionError, UnknownName
from flat.runtime import Machine, load
from flat.runtime.loading import child_of
from flat.runtime.profiles import chosen_profile

FAST = {"provider": "openai", "name": "fast", "temperature": 0.5, "max_tokens": 9}
HERE = {"provider": "local", "name": "small", "temperature": 0.1}
CODER = {"type": "claude-code", "model": "opus"}
PROFILES = {
    "model_profiles": {
        "fast": FAST,
        "far": {"provider": "x", "name": "y", "base_url": "https://far", "api_key": "k"},
        "here": HERE,
        "coder": CODER,
    },
    "override": "far",
}


def machine_data(model: Any = "fast", **data: Any) -> dict[str, Any]:
    agent = {"spec": "flatagent", "spec_version": "4.2.1", "data": {"model": model, "user": "Hi"}}
    if model is None:
        del agent["data"]["model"]  # type: ignore[attr-defined]
    return {
        "spec": "flatmachine",
        "spec_version": "4.2.1",
        "data": {
            "name": "asking",
            "agents": {"helper": agent},
            "states": {"ask": {"agent": "helper", "transitions": [{"to": "end"}]}, "end": {"type": "final"}},
            **data,
        },
    }


def settings(machine: Machine) -> dict[str, Any]:
    config = machine.program.agents["helper"]
    return model_settings(config["config"], config["catalogue"])


@pytest.mark.parametrize(
    ("model", "settled"),
    [
        ("fast", HERE),
        (None, HERE),
        ({"provider": "z", "name": "zz", "base_url": "https://z", "api_key": "secret"}, HERE),
        ({"profile": "fast", "temperature": 0.9}, {**HERE, "temperature": 0.9}),
        ({"type": "llm", "model": {"name": "zz", "seed": 3}}, {**HERE, "seed": 3}),
        ({"spec": "flatprofile", "data": {"model_profiles": {"own": FAST}}}, HERE),
    ],
)
def test_an_agent_keeps_how_it_asks_and_not_which_model_or_key(model: Any, settled: dict[str, Any]) -> None:
    machine = load(config=machine_data(model, profiles=PROFILES), profile="here", compat=True)
    assert settings(machine) == settled


def test_a_bundle_is_put_on_the_profile_too() -> None:
    config = machine_data(profiles=PROFILES)
    config["data"]["agents"]["helper"]["data"] = {"prompt": {"user": "Hi"}, "profile": "fast"}
    assert settings(load(config=config, profile="here")) == HERE


def test_a_profile_of_another_kind_takes_no_setting_of_a_model_over() -> None:
    model = {"profile": "fast", "temperature": 0.9}
    assert settings(load(config=machine_data(model, profiles=PROFILES), profile="coder")) == CODER


def test_agents_that_ask_no_model_stay_what_they_are() -> None:
    config = machine_data(profiles=PROFILES)
    config["data"]["agents"]["claude"] = {"type": "claude-code", "config": {"model": "opus"}}
    before, after = load(config=config), load(config=config, profile="here")
    assert after.program.agents["claude"] == before.program.agents["claude"]
    assert after.program.agents["helper"] != before.program.agents["helper"]


def test_the_choice_is_part_of_the_program_and_its_digest() -> None:
    config = machine_data(profiles={**PROFILES, "override": None})
    before, after = load(config=config), load(config=config, profile="fast")
    assert settings(before) == settings(after)
    assert before.program.digest != after.program.digest
    assert (chosen_profile(before.program), chosen_profile(after.program)) == (None, "fast")


def test_a_name_that_no_profile_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownName, match='no profile "her" in the catalogue; it has fast, far, here, coder'):
        load(config=machine_data(profiles=PROFILES), profile="her")


def test_without_a_catalogue_or_a_model_there_is_nothing_to_choose(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"no catalogue; add a profiles\.yml"):
        load(config=machine_data({"name": "gpt"}), directory=tmp_path, profile="here")
    states = {"a": {"transitions": [{"to": "end"}]}, "end": {"type": "final"}}
    silent = machine_data(agents={}, states=states)
    with pytest.raises(DefinitionError, match="no agents that ask a model"):
        load(config=silent, profile="here")


# -- children --------------------------------------------------------------------------------


def family(folder: Path, *, own: Any = None, child: dict[str, Any] | None = None) -> Path:
    """A machine file with a child in a folder of its own, which may have a catalogue of its own."""
    below = folder / "below"
    below.mkdir()
    (below / "child.yml").write_text(yaml.safe_dump(child or machine_data()))
    if own is not None:
        (below / "profiles.yml").write_text(yaml.safe_dump({"spec": "flatprofile", "data": own}))
    states = {"a": {"machine": "child", "transitions": [{"to": "end"}]}, "end": {"type": "final"}}
    parent = machine_data(profiles=PROFILES, machines={"child": "below/child.yml"}, states=states)
    file = folder / "machine.yml"
    file.write_text(yaml.safe_dump(parent))
    return file


def test_a_child_without_a_catalogue_runs_on_its_parents_profile(tmp_path: Path) -> None:
    child = child_of(load(family(tmp_path), profile="here"), "child")
    assert settings(child) == HERE
    assert chosen_profile(child.program) == "here"


def test_a_child_with_a_profile_of_that_name_has_its_own(tmp_path: Path) -> None:
    own = {"model_profiles": {"fast": FAST, "here": {"provider": "local", "name": "own"}}}
    child = child_of(load(family(tmp_path, own=own), profile="here"), "child")
    assert settings(child) == {"provider": "local", "name": "own"}


def test_a_child_whose_catalogue_has_no_such_name_takes_the_parents_profile(tmp_path: Path) -> None:
    child = child_of(load(family(tmp_path, own={"model_profiles": {"fast": FAST}}), profile="here"), "child")
    assert settings(child) == HERE


def test_a_child_that_asks_no_model_hands_the_profile_down(tmp_path: Path) -> None:
    """From a parent with no agents and no catalogue, through such a child, to one that has both."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "profiles.yml").write_text(yaml.safe_dump(PROFILES))
    (tmp_path / "inner" / "asking.yml").write_text(yaml.safe_dump(machine_data()))
    states = {"a": {"machine": "next", "transitions": [{"to": "end"}]}, "end": {"type": "final"}}
    for name, below in (("outer", "middle.yml"), ("middle", "inner/asking.yml")):
        data = machine_data(agents={}, machines={"next": below}, states=states)
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(data))
    outer = load(tmp_path / "outer.yml", profile="here")
    assert settings(child_of(child_of(outer, "next"), "next")) == HERE
    lost = load(tmp_path / "outer.yml", profile="lost")
    with pytest.raises(UnknownName, match="lost"):
        child_of(child_of(lost, "next"), "next")
