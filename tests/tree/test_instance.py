"""Who may run, who talks to the user, where pack states live, and which trees cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from travel import billing_desk, charter, desk, fare_watch, likes, tree, watcher

from flat.errors import CallRefused, TreeError
from flat.tree import (
    Charter,
    Instance,
    Node,
    Pack,
    SuspendInfo,
    active_instance,
    active_leaves,
    all_instances,
    clear_suspension,
    find_instance,
    instance_path,
    start_tree,
    suspended_instances,
)
from flat.tree.instance import pack_owner, path_to

WAIT = SuspendInfo(suspend_id="s", reason="why")
plain = Node("Any.", dict, name="plain", initial_state={})
helper = Node("Help.", dict, name="helper", worker=True, initial_state={})


def at(node: Node[Any], id: str, *children: Instance[Any], **options: Any) -> Instance[Any]:
    return Instance(node, {}, children, id=id, **options)


def active(root: Instance[Any]) -> list[str]:
    return [leaf.instance.id for leaf in active_leaves(root)]


def test_only_leaves_are_active_in_depth_first_order() -> None:
    root = at(plain, "r", at(plain, "p", at(helper, "a"), at(helper, "b")), at(helper, "c"))
    assert active(root) == ["a", "b", "c"]
    first = active_leaves(root)[0]
    assert first.leaf_index == (0, 0)
    assert [i.id for i in first.ancestors] == ["r", "p"]
    assert first.is_worker
    assert active_leaves(at(plain, "r"))[0].leaf_index == ()


def test_a_suspended_instance_is_skipped_with_all_below_and_blocks_its_parent() -> None:
    root = at(plain, "r", at(plain, "p", at(helper, "a"), suspended=WAIT), at(helper, "b"))
    assert active(root) == ["b"]
    assert active(at(plain, "r", at(helper, "a", suspended=WAIT))) == []
    assert [i.id for i in suspended_instances(root)] == ["p"]
    assert clear_suspension(suspended_instances(root)[0]).suspended is None


def test_a_parent_goes_on_beside_children_in_the_background() -> None:
    assert active(at(plain, "r", at(helper, "a", background=True))) == ["r", "a"]
    assert active(at(plain, "r", at(helper, "a", background=True), at(helper, "b"))) == ["a", "b"]


def test_the_user_talks_to_the_last_child_that_is_no_worker() -> None:
    root = at(plain, "r", at(plain, "p", at(helper, "w")), at(helper, "x"))
    assert active_instance(root).id == "p"
    assert [i.id for i in instance_path(root)] == ["r", "p"]
    assert active_instance(at(plain, "r", at(plain, "p", suspended=WAIT))).id == "p"


def test_an_id_that_is_there_twice_is_refused() -> None:
    with pytest.raises(TreeError) as caught:
        all_instances(at(plain, "r", at(helper, "r")))
    assert caught.value.code == "tree_cycle"


def test_a_tree_that_is_too_deep_is_refused() -> None:
    root = at(helper, "0")
    for depth in range(1, 103):
        root = at(helper, str(depth), root)
    with pytest.raises(TreeError) as caught:
        all_instances(root)
    assert caught.value.code == "tree_too_deep"
    assert find_instance(root, "0") is not None


def test_an_instance_is_found_with_its_path_or_not_at_all() -> None:
    root = tree(watcher())
    assert [i.id for i in path_to(root, "w")] == ["r", "w"]
    assert find_instance(root, "nobody") is None


def test_a_tree_is_ready_when_every_state_is_validated_and_kept() -> None:
    given = Instance(desk, {"legs": ["Oslo"]}, pack_states={"likes": {"currency": "NOK"}}, id="r")
    root = start_tree(charter, given)
    assert root.state == {"legs": ["Oslo"], "traveller": ""}
    assert root.pack_states == {"likes": {"currency": "NOK", "seats": {}}}
    assert given.pack_states == {"likes": {"currency": "NOK"}}


def test_every_refused_state_of_a_tree_is_told() -> None:
    root = Instance(desk, {"legs": 1}, Instance(fare_watch, {}, id="w"), id="r")
    with pytest.raises(TreeError) as caught:
        start_tree(charter, root)
    assert caught.value.code == "invalid_state"
    assert 'node "desk" (r)' in str(caught.value)
    assert 'node "fare_watch" (w): `leg`: Field required' in str(caught.value)


def test_an_instance_without_any_state_is_refused() -> None:
    with pytest.raises(TreeError, match="no state"):
        start_tree(charter, Instance(billing_desk))


def test_initial_states_are_not_shared_between_instances() -> None:
    a, b = Instance(desk), Instance(desk)
    a.state["legs"].append("Oslo")
    assert b.state["legs"] == []
    assert a.id != b.id


@pytest.mark.parametrize(
    "root",
    [
        at(plain, "r", at(plain, "a"), at(plain, "b")),
        at(helper, "r", at(plain, "a")),
        at(plain, "r", at(helper, "w", at(plain, "a"))),
        at(plain, "r", at(plain, "a", background=True)),
    ],
    ids=["two beside", "below a worker", "below a worker below", "in the background"],
)
def test_a_tree_with_a_second_primary_is_refused(root: Instance[Any]) -> None:
    with pytest.raises(CallRefused) as caught:
        start_tree(charter, root)
    assert caught.value.code == "two_primaries"


# -- packs ------------------------------------------------------------------------


def test_packs_of_every_node_begin_at_the_root() -> None:
    inner = Node("x", dict, name="inner", packs=[likes])
    root = start_tree(charter, at(plain, "r", at(inner, "i")))
    assert root.pack_states == {"likes": {"currency": "EUR", "seats": {}}}
    assert root.packs == (likes,)
    assert root.children[0].pack_states == {}


def test_a_boundary_gives_a_branch_a_state_of_its_own() -> None:
    notes = Pack("notes", initial_state={"n": 0})
    leaf = Node("x", dict, name="leaf", packs=[notes])
    fence = Node("x", dict, name="fence", pack_boundary=["notes"])
    known = Charter("c", packs=[notes], nodes={"leaf": leaf, "fence": fence})
    root = start_tree(known, at(plain, "r", at(fence, "f", at(leaf, "l"))))
    assert root.pack_states == {}
    assert root.children[0].pack_states == {"notes": {"n": 0}}
    assert pack_owner(path_to(root, "l"), "notes").id == "f"


def test_workers_have_no_packs() -> None:
    worker = Node("x", dict, name="w", worker=True, packs=[likes])
    assert start_tree(charter, at(plain, "r", at(worker, "w"))).pack_states == {}
