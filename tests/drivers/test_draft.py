"""Drafts: whatever user code does to one, the original stays, and the result is what it would have been."""

from __future__ import annotations

import copy
import heapq
import json
import pickle
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flat.core.grown import Grown
from flat.drivers.draft import draft, draft_of, settle, settled_context

LEAF = st.integers(0, 5) | st.text("ab", max_size=2) | st.none()
PLAIN = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=10,
)
CONTEXTS = st.dictionaries(
    st.sampled_from("abcd"), PLAIN | st.sets(st.integers(0, 5), max_size=3), max_size=4
)
INDEX = st.integers(0, 3)
CHANGES = st.lists(st.tuples(st.integers(0, 40), INDEX, INDEX, st.sampled_from("abcd"), PLAIN), max_size=8)


def walk(value: Any, *turns: int) -> Any:
    """Some container inside."""
    for turn in turns:
        inner = (
            list(value.values())
            if isinstance(value, dict)
            else list(value)
            if isinstance(value, list)
            else []
        )
        containers = [v for v in inner if isinstance(v, dict | list | set)]
        if not containers:
            return value
        value = containers[turn % len(containers)]
    return value


def change(context: dict[str, Any], how: int, first: int, second: int, key: str, new: Any) -> None:
    """One change somewhere in the context; the same one on equal contexts."""
    target = walk(context, first, second) if how % 2 else walk(context, first)
    new = copy.deepcopy(new)
    if isinstance(target, dict):
        [
            lambda: target.__setitem__(key, new),
            lambda: target.pop(key, None),
            lambda: target.update({key: new}),
            lambda: target.setdefault(key, []),
            lambda: target.clear(),
            lambda: target.__setitem__(key, target.get("a")),
            lambda: target.popitem() if target else None,
            lambda: target.__setitem__(key, [*target.values()]),
            lambda: target.__setitem__(key, dict(target)),
            lambda: target.__setitem__(key, target | {"x": new}),
        ][how % 10]()
    elif isinstance(target, list):

        def numbers() -> list[Any]:
            return [x for x in target if isinstance(x, int)]

        def sort() -> None:
            target.sort(key=repr)

        def assign() -> None:
            if target:
                target[second % len(target)] = new

        def push() -> None:
            if len(numbers()) == len(target):
                heapq.heappush(target, first)

        [
            lambda: target.append(new),
            lambda: target.extend([new, first]),
            lambda: target.insert(first, new),
            lambda: target.pop() if target else None,
            lambda: target.clear(),
            sort,
            target.reverse,
            assign,
            push,
            lambda: target.__iadd__([new]),
            lambda: target.__setitem__(slice(0, first), [new]),
            lambda: target.append([*(target + [1]), *([2] + target)]),  # noqa: RUF005
        ][how % 12]()
    else:
        target.add(how) if how % 3 else target.clear()


def apart(value: Any) -> Any:
    """A copy in which no two places hold the same container, as after a restart."""
    if isinstance(value, dict):
        return {k: apart(v) for k, v in value.items()}
    return [apart(v) for v in value] if isinstance(value, list) else copy.copy(value)


@settings(max_examples=300, deadline=None)
@given(CONTEXTS, CHANGES)
def test_changes_through_a_draft_equal_changes_of_a_copy(context: dict[str, Any], changes: list[Any]) -> None:
    untouched = copy.deepcopy(context)
    expected = apart(context)
    first = draft_of(context)
    for one in changes:
        change(first, *one)
        change(expected, *one)
    result = settled_context(first, context)
    assert result == expected
    assert context == untouched
    for key, value in result.items():
        if not changes:
            assert value is context[key]
    second = draft_of(result)
    kept, expected = copy.deepcopy(result), apart(result)
    for one in changes:
        change(second, *one)
        change(expected, *one)
    assert settled_context(second, result) == expected
    assert result == kept


def test_what_is_only_read_stays_the_same_object() -> None:
    context = {"d": {"l": [{"x": 1}], "t": (1, [2])}, "l": [[1], {"y": {"z": 2}}], "s": {1, 2}}
    seen = draft_of(context)
    assert seen["d"]["l"][0]["x"] == 1
    assert list(seen["l"])[1]["y"].get("z") == 2
    assert seen["d"]["t"][1] == [2]
    assert 1 in seen["s"]
    result = settled_context(seen, context)
    assert all(result[key] is context[key] for key in context)


def test_beside_a_change_everything_keeps_its_identity() -> None:
    context = {"tree": {"left": {"x": [1]}, "right": {"y": [2]}}, "list": [{"a": 1}, {"b": 2}]}
    seen = draft_of(context)
    seen["tree"]["left"]["x"].append(5)
    del seen["tree"]["left"]["x"][0]
    seen["list"].append({"c": 3})
    result = settled_context(seen, context)
    assert result["tree"]["right"] is context["tree"]["right"]
    assert isinstance(result["list"], Grown)
    assert result["list"].grew_from(context["list"])
    assert all(a is b for a, b in zip(result["list"], context["list"], strict=False))


def test_a_changed_item_of_a_list_is_no_growth() -> None:
    context = {"list": [{"a": 1}, {"b": 2}]}
    seen = draft_of(context)
    seen["list"][0]["a"] = 9
    seen["list"].append(3)
    result = settled_context(seen, context)
    assert type(result["list"]) is list
    assert result["list"][1] is context["list"][1]


def test_what_user_code_keeps_and_changes_later_does_not_reach_the_snapshot() -> None:
    mine, held = [1], {"deep": [1]}
    seen = draft_of({"l": []})
    seen["l"].append(mine)
    seen["held"] = held
    result = settled_context(seen, {})
    mine.append(2)
    held["deep"].append(2)
    assert result == {"l": [[1]], "held": {"deep": [1]}}


def test_what_was_appended_may_be_changed_through_either_name() -> None:
    mine: dict[str, int] = {}
    seen = draft_of({"l": [{"x": 1}]})
    seen["l"].append(mine)
    seen["l"][-1]["a"] = 1
    mine["b"] = 2
    assert settle(seen["l"]) == [{"x": 1}, {"a": 1, "b": 2}]


class Person(BaseModel):
    name: str
    tags: list[str] = []


@pytest.mark.parametrize("value", [{1}, Person(name="Ann"), ([1], 2), OrderedDict(a=[1]), bytearray(b"a")])
def test_other_values_that_change_in_place_do_not_change_the_snapshot(value: Any) -> None:
    context = {"v": value}
    before = copy.deepcopy(value)
    seen = draft_of(context)
    assert settled_context(seen, context)["v"] == before
    match seen["v"]:
        case set() as found:
            found.add(7)
        case Person() as person:
            person.tags.append("x")
        case tuple() as pair:
            pair[0].append(7)
        case dict() as mapping:
            mapping["a"].append(7)
        case bytearray() as data:
            data.append(1)
    assert context["v"] == before
    assert settled_context(seen, context)["v"] != before


def test_dict_subclasses_of_user_code_become_what_a_restart_would_make_of_them() -> None:
    seen = draft_of({})
    seen["c"] = Counter("aab")
    seen["d"] = defaultdict(list, x=[1])
    result = settled_context(seen, {})
    assert {type(value) for value in result.values()} == {dict}


def test_the_read_only_facts_are_not_part_of_the_context() -> None:
    assert settled_context({"machine": 1, "a": 2}, {}) == {"a": 2}


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d)), lambda d: d.copy()]
)
def test_copies_of_drafts_are_free(how: Any) -> None:
    context = {"d": {"l": [1], "m": [{"x": 1}]}}
    seen = draft_of(context)
    free = how(seen["d"])
    free["l"].append(2)
    how(seen["d"]["m"])[0]["x"] = 2
    assert context == {"d": {"l": [1], "m": [{"x": 1}]}}


def test_sums_and_products_of_drafts_do_not_reach_the_original() -> None:
    context = {"l": [{"x": 1}], "d": {"k": [1]}}
    seen = draft_of(context)
    for made in (seen["l"] + [1], [*seen["l"]], seen["l"] * 2, 2 * seen["l"]):
        made[0]["x"] += 1
    ([0] + seen["l"])[1]["x"] += 1
    for merged in (seen["d"] | {}, {} | seen["d"], {**seen["d"]}, dict(seen["d"])):
        merged["k"].append(1)
    assert context == {"l": [{"x": 1}], "d": {"k": [1]}}


def test_a_draft_is_json() -> None:
    seen = draft_of({"d": {"l": [1, {"x": None}]}})
    assert json.loads(json.dumps(seen)) == {"d": {"l": [1, {"x": None}]}}


@pytest.mark.parametrize("value", [1, "x", None, 2.5, b"x"])
def test_what_cannot_change_is_not_wrapped(value: Any) -> None:
    assert draft(value) is value
    assert settle(value) is value
