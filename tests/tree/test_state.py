"""Merging, validating, and recording what changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator
from travel import Desk

from flat.errors import CharterError, StateError
from flat.tree.node import Node
from flat.tree.schema import (
    JsonSchema,
    as_schema,
    escape_schema_keys,
    from_safe_json_schema,
    is_object_schema,
    json_schema_or_open,
    partial_schema,
    restore_schema_keys,
    to_safe_json_schema,
)
from flat.tree.state import Draft, changed, deep_merge, replaced, shallow_merge

SCHEMA = as_schema(Desk)


class Prefs(BaseModel):
    seat: dict[str, Any] = {}
    tags: list[str] = []
    limit: float | None = None


def test_a_shallow_merge_replaces_whole_values() -> None:
    assert shallow_merge({"a": {"x": 1}, "b": [1]}, {"a": {"y": 2}}) == {"a": {"y": 2}, "b": [1]}


def test_a_deep_merge_goes_down_objects_and_replaces_the_rest() -> None:
    merged = deep_merge({"a": {"x": 1, "z": [1, 2]}, "b": 1}, {"a": {"y": 2, "z": [3]}, "b": None})
    assert merged == {"a": {"x": 1, "y": 2, "z": [3]}, "b": None}


def test_a_record_holds_the_validated_keys_that_changed() -> None:
    change = changed(as_schema(Prefs), {"seat": {}, "tags": [], "limit": None}, {"limit": "3", "ghost": 1})
    assert change.state == {"seat": {}, "tags": [], "limit": 3.0}
    assert change.patch == {"limit": 3.0}
    assert change.drop == ()


def test_keys_can_be_dropped_and_come_back_as_defaults() -> None:
    change = changed(SCHEMA, {"legs": ["Oslo"], "traveller": "Mira"}, drop_keys=["legs"])
    assert change.state == {"legs": [], "traveller": "Mira"}
    assert change.patch == {"legs": []}
    loose = changed(as_schema(dict), {"a": 1, "b": 2}, drop_keys=["a", "c"])
    assert (loose.state, loose.drop) == ({"b": 2}, ("a",))


def test_a_refused_patch_says_which_value_and_why() -> None:
    with pytest.raises(StateError) as caught:
        changed(SCHEMA, {"legs": []}, {"legs": [1], "traveller": None})
    assert str(caught.value) == (
        "`legs.0`: Input should be a valid string, got 1; `traveller`: Input should be a valid string, got None"
    )
    assert caught.value.code == "state_patch_invalid"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused(value: float) -> None:
    with pytest.raises(StateError, match=r"`a\.0`.*is not a JSON number"):
        changed(as_schema(dict), {}, {"a": [value]})


def test_a_state_that_is_no_object_cannot_be_patched_and_can_be_replaced() -> None:
    schema = as_schema(list[int])
    with pytest.raises(StateError, match="replace it instead"):
        changed(schema, [1], {"a": 1})
    assert replaced(schema, [1], [2, "3"]).state == [2, 3]
    draft = Draft(schema, [1])
    draft.replace([4])
    assert draft.whole
    assert draft.state == [4]


def test_models_inside_a_patch_become_plain_data() -> None:
    class Legs(BaseModel):
        legs: list[Desk] = []

    change = changed(as_schema(Legs), {"legs": []}, {"legs": [Desk(traveller="Mira")]})
    assert change.patch == {"legs": [{"legs": [], "traveller": "Mira"}]}


def test_a_draft_adds_up_what_is_written_and_dropped() -> None:
    draft = Draft(as_schema(dict), {"a": 1, "b": 2})
    draft.update({"c": 3}, deep=False, drop_keys=["a"])
    draft.update({"a": 4}, deep=False, drop_keys=["b"])
    assert draft.state == {"c": 3, "a": 4}
    assert (draft.patch, draft.drop) == ({"c": 3, "a": 4}, ["b"])


def test_a_draft_that_may_only_be_read_says_why() -> None:
    draft = Draft(SCHEMA, {"legs": []}, read_only="it belongs to your parent")
    with pytest.raises(StateError, match="it belongs to your parent") as caught:
        draft.update({"legs": []}, deep=False, drop_keys=())
    assert caught.value.code == "ancestor_state_readonly"


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abcd"), plain, max_size=4)


@given(objects, objects, st.booleans(), st.sets(st.sampled_from("abcd")))
def test_a_record_turns_the_old_state_into_the_new_one(
    old: dict[str, Any], patch: dict[str, Any], deep: bool, drop: set[str]
) -> None:
    change = changed(as_schema(dict), old, patch, deep=deep, drop_keys=drop)
    rebuilt = {**{k: v for k, v in old.items() if k not in change.drop}, **change.patch}
    assert rebuilt == change.state


# -- schemas ----------------------------------------------------------------------


def test_a_patch_schema_has_no_required_keys_and_no_defaults() -> None:
    class Watch(BaseModel):
        leg: str
        limit: float = Field(1.0, gt=0)

    assert partial_schema(as_schema(Watch).json_schema()) == {
        "type": "object",
        "properties": {"leg": {"type": "string"}, "limit": {"type": "number", "exclusiveMinimum": 0}},
    }


def test_a_schema_that_json_cannot_tell_becomes_an_open_object_and_still_checks() -> None:
    class Pair(BaseModel):
        a: int = 0
        call: Any = Field(default_factory=lambda: None)

        @model_validator(mode="after")
        def a_is_small(self) -> Pair:
            if self.a > 3:
                raise ValueError("a is too big")
            return self

    class Strange(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        when: object = None
        what: complex = 1j

    assert partial_schema(json_schema_or_open(as_schema(Strange)))["type"] == "object"
    with pytest.raises(StateError, match="a is too big"):
        changed(as_schema(Pair), {"a": 0}, {"a": 9})


def test_only_objects_count_as_objects() -> None:
    class Tree(BaseModel):
        left: Tree | None = None

    assert is_object_schema(as_schema(Tree).json_schema())
    assert is_object_schema(as_schema(dict).json_schema())
    assert is_object_schema(as_schema(Desk | Prefs).json_schema())
    for other in (list[int], str, int | None, Desk | int):
        assert not is_object_schema(as_schema(other).json_schema())
    assert "left" in partial_schema(as_schema(Tree).json_schema())["properties"]


def test_a_json_schema_checks_and_fills_in_defaults() -> None:
    schema = JsonSchema[Any](
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "n": {"type": "integer", "default": 3},
                "in": {"type": "object", "properties": {"m": {"default": []}}},
            },
            "required": ["n"],
            "additionalProperties": False,
        }
    )
    assert schema.validate({"in": {}}) == {"n": 3, "in": {"m": []}}
    with pytest.raises(StateError) as caught:
        schema.validate({"n": "x", "z": 1})
    assert {path for path, _ in caught.value.errors} == {"n", ""}
    assert "$schema" not in schema.json_schema()


def test_a_json_schema_that_is_none_is_refused() -> None:
    with pytest.raises(CharterError, match="not a JSON Schema"):
        as_schema({"type": 3})


def test_exactly_nine_keywords_are_escaped_and_restored() -> None:
    words = ["schema", "id", "ref", "defs", "anchor", "vocabulary", "comment", "dynamicRef", "dynamicAnchor"]
    data = {f"${word}": [{"$other": word}] for word in words}
    escaped = escape_schema_keys(data)
    assert list(escaped) == [f"__{word}" for word in words]
    assert escaped["__ref"] == [{"$other": "ref"}]
    assert restore_schema_keys(escaped) == data


def test_a_stored_schema_checks_like_the_one_it_was_made_of() -> None:
    class Tree(BaseModel):
        left: Tree | None = None
        size: int

    stored = to_safe_json_schema(as_schema(Tree))
    assert stored["__schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert not any(key.startswith("$") for key in str(stored).split("'"))
    back = from_safe_json_schema(stored)
    assert back.validate({"left": {"size": 1}, "size": 2}) == {"left": {"size": 1, "left": None}, "size": 2}
    with pytest.raises(StateError):
        back.validate({"left": {}, "size": 2})


def test_a_node_without_a_model_of_its_state_begins_with_an_empty_one() -> None:
    assert Node("Greet.", name="greeter").initial_state == {}
