"""Profile catalogues: their spellings, and the order in which settings win."""

from __future__ import annotations

from typing import Any

import pytest

from flat.agents.profiles import check_catalogue, model_name, named_instead, read_catalogue, resolve_profile
from flat.errors import SpecError, UnknownName

A = {"provider": "p", "name": "na", "temperature": 0.1}
B = {"provider": "q", "name": "nb", "max_tokens": 5}
BODY = {"model_profiles": {"a": A, "b": B}, "default": "a"}


@pytest.mark.parametrize(
    ("reference", "result"),
    [
        (None, A),
        ({}, A),
        ([1], A),
        ("b", {**B, "temperature": 0.1}),
        ({"provider": "z", "name": "zz"}, {"provider": "z", "name": "zz", "temperature": 0.1}),
        ({"profile": "b", "temperature": 0.9, "max_tokens": None}, {**B, "temperature": 0.9}),
    ],
)
def test_settings_win_key_by_key(reference: Any, result: dict[str, Any]) -> None:
    assert resolve_profile(read_catalogue(BODY), reference) == result


def test_the_override_wins_over_all_but_only_with_the_keys_it_has() -> None:
    catalogue = read_catalogue({**BODY, "override": "b"})
    settings = resolve_profile(catalogue, {"profile": "a", "temperature": 0.9, "seed": 1})
    assert settings == {**B, "temperature": 0.9, "seed": 1}


def test_a_lost_default_does_not_matter_to_a_named_profile_but_is_reported() -> None:
    catalogue = read_catalogue({**BODY, "default": "lost"})
    assert resolve_profile(catalogue, "b") == B
    assert len(check_catalogue(catalogue)) == 1


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(UnknownName, match="known: a, b"):
        resolve_profile(read_catalogue(BODY), "unknown")
    with pytest.raises(UnknownName):
        resolve_profile(read_catalogue({**BODY, "override": "unknown"}))
    assert resolve_profile(read_catalogue(BODY), "unknown", compat=True) == A


def test_a_null_in_a_profile_overwrites() -> None:
    catalogue = read_catalogue({"model_profiles": {"a": A, "n": {"temperature": None}}, "default": "a"})
    assert resolve_profile(catalogue, "n")["temperature"] is None


@pytest.mark.parametrize(
    "document",
    [
        {"spec": "flatprofile", "data": BODY},
        {"spec": "flatprofiles", "spec_version": 2.5, "data": BODY},
        BODY,
        {"profiles": {"a": A, "b": B}, "default": "a", "override": None},
    ],
)
def test_every_spelling_of_a_catalogue_is_read(document: dict[str, Any]) -> None:
    catalogue = read_catalogue(document)
    assert (catalogue.profiles, catalogue.default, catalogue.override) == ({"a": A, "b": B}, "a", None)
    assert read_catalogue(catalogue) is catalogue


def test_an_empty_catalogue_and_a_wrong_one() -> None:
    assert read_catalogue(None).profiles == {}
    with pytest.raises(SpecError, match="Invalid profiles spec"):
        read_catalogue({"spec": "flatagent", "data": {}})
    with pytest.raises(SpecError, match='profile "a" is not a mapping'):
        read_catalogue({"model_profiles": {"a": "text"}})


def test_nested_models_are_flattened_and_kinds_do_not_mix() -> None:
    nested = {"type": "llm", "model": {"name": "n", "provider": "p"}}
    profiles = {
        "nested": nested,
        "coder": {"type": "claude-code", "model": "opus"},
        "flat": {"type": "llm", "name": "f"},
    }
    catalogue = read_catalogue({"model_profiles": profiles, "default": "coder"})
    assert resolve_profile(catalogue, "nested") == {"name": "n", "provider": "p"}
    assert resolve_profile(catalogue, "flat") == {"name": "f"}
    assert resolve_profile(catalogue)["type"] == "claude-code"
    catalogue = read_catalogue({"model_profiles": profiles, "default": "nested"})
    assert resolve_profile(catalogue, "coder") == {"type": "claude-code", "model": "opus"}


@pytest.mark.parametrize(
    ("provider", "name", "full"),
    [
        ("openai", "gpt", "openai/gpt"),
        ("openrouter", "anthropic/m", "openrouter/anthropic/m"),
        ("openai", "openai/gpt", "openai/gpt"),
        ("openai", "openai:gpt", "openai:gpt"),
        ("a", "ba/c", "ba/c"),
        (None, "x", "x"),
        ("openai", None, None),
    ],
)
def test_the_provider_goes_in_front_unless_it_is_there(
    provider: str | None, name: str | None, full: Any
) -> None:
    assert model_name({"provider": provider, "name": name}) == full


@pytest.mark.parametrize(
    ("reference", "instead"),
    [
        (None, "b"),
        ("a", "b"),
        ({"profile": "a", "temperature": 0.9}, {"profile": "b", "temperature": 0.9}),
        ({"provider": "z", "name": "zz", "api_key": "k", "seed": 1}, {"profile": "b", "seed": 1}),
        ({"provider": "z", "name": "zz", "base_url": "https://z"}, "b"),
        ({"type": "llm", "model": {"name": "zz", "top_p": 0.5}}, {"profile": "b", "top_p": 0.5}),
        ({"type": "claude-code", "model": "opus", "timeout": 9}, {"profile": "b", "timeout": 9}),
        ({"spec": "flatprofile", "data": {"model_profiles": {"own": A}}}, "b"),
    ],
)
def test_another_profile_in_place_of_the_named_one_takes_no_key_to_a_foreign_place(
    reference: Any, instead: Any
) -> None:
    assert named_instead(reference, "b", B) == instead


def test_a_command_line_in_place_of_a_model_takes_nothing_over() -> None:
    assert named_instead({"profile": "a", "temperature": 0.9}, "coder", {"type": "claude-code"}) == "coder"
