"""The public names of `flat.tree`."""

from __future__ import annotations

import inspect

import pytest

import flat.tree

README = """
create_charter create_node create_instance create_standard_executor create_transition create_helpers transition_to
serialize_instance deserialize_instance Charter Node Pack Instance Command transition spawn cede suspend tool command
"""


def test_every_public_name_is_there_and_documented() -> None:
    assert dir(flat.tree) == flat.tree.__all__ == sorted(flat.tree.__all__)
    for name in flat.tree.__all__:
        value = getattr(flat.tree, name)
        assert not inspect.ismodule(value), name
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_the_names_that_authors_write_are_among_them() -> None:
    assert set(README.split()) <= set(flat.tree.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flat.tree.nothing  # noqa: B018


def test_helpers_make_results_for_one_node() -> None:
    node = flat.tree.Node("x", dict)
    helpers = flat.tree.create_helpers(node)
    assert helpers.transition_to({"a": 1}) == flat.tree.transition_to(node, {"a": 1})
    assert helpers.spawn({}, brief="b") == flat.tree.spawn(node, {}, brief="b")
    assert helpers.cede("x") == flat.tree.cede("x")
    assert helpers.suspend("why", "s") == flat.tree.suspend("why", "s")
