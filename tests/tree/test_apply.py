"""Changes applied to a tree: what each does, and that one which cannot be leaves the tree alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from travel import Desk, charter, desk, fare_watch, tree, watcher

from flat.errors import TreeError
from flat.tree import (
    Ceded,
    Change,
    Instance,
    NewChild,
    PackPatch,
    Resumed,
    Spawned,
    StatePatch,
    Suspended,
    SuspendInfo,
    Transitioned,
    active_leaves,
    all_instances,
    applied,
    apply_changes,
    replayed,
    start_tree,
)
from flat.tree.instance import check_invariants

WAIT = SuspendInfo(suspend_id="s", reason="why")
ROOT = start_tree(charter, tree(watcher(), legs=["Oslo"]))


def oslo(id: str, **options: Any) -> NewChild:
    return NewChild(node={"ref": "fare_watch"}, state={"leg": "Oslo"}, id=id, **options)


def code_of(change: Change, root: Instance[Any] = ROOT) -> str:
    with pytest.raises(TreeError) as caught:
        applied(charter, root, change)
    (refused,) = apply_changes(charter, root, [change]).refused
    assert apply_changes(charter, root, [change]).root is root
    assert refused[1].code == caught.value.code
    return caught.value.code


def test_a_state_patch_merges_and_validates() -> None:
    root = applied(charter, ROOT, StatePatch(instance_id="r", patch={"traveller": "Mira"}))
    assert root.state == {"legs": ["Oslo"], "traveller": "Mira"}
    assert root.children[0] is ROOT.children[0]


def test_a_pack_patch_goes_to_the_root_unless_an_owner_is_named() -> None:
    root = applied(charter, ROOT, PackPatch(pack_name="likes", patch={"currency": "NOK"}))
    assert root.pack_states["likes"]["currency"] == "NOK"
    own = applied(charter, ROOT, PackPatch(pack_name="likes", patch={"currency": "NOK"}, owner_id="w"))
    assert own.pack_states["likes"]["currency"] == "EUR"
    assert own.children[0].pack_states["likes"]["currency"] == "NOK"


def test_a_transition_keeps_id_and_packs_and_drops_children() -> None:
    root = applied(charter, ROOT, Transitioned(instance_id="r", node={"ref": "billing"}, state={}))
    assert (root.id, root.children, root.node.instructions) == ("r", (), "Send the bill.")
    assert root.pack_states == ROOT.pack_states


def test_a_spawn_appends() -> None:
    root = applied(
        charter, ROOT, Spawned(parent_instance_id="r", children=(oslo("a"), oslo("b", background=True)))
    )
    assert [c.id for c in root.children] == ["w", "a", "b"]
    assert root.children[1].state == {"leg": "Oslo", "limit": 100.0}
    assert root.children[2].background


def test_a_cede_takes_everything_below_with_it() -> None:
    inner = applied(charter, ROOT, Spawned(parent_instance_id="w", children=(oslo("a"),)))
    done = apply_changes(charter, inner, [Ceded(instance_id="w", content="x")])
    assert done.root.children == ()
    assert done.ceded == (Ceded(instance_id="w", content="x"),)
    assert [leaf.instance.id for leaf in active_leaves(done.root)] == ["r"]


def test_several_cedes_of_one_step_all_count() -> None:
    root = applied(charter, ROOT, Spawned(parent_instance_id="r", children=(oslo("a"),)))
    done = apply_changes(
        charter, root, [Ceded(instance_id="a", content="1"), Ceded(instance_id="w", content="2")]
    )
    assert [ceded.content for ceded in done.ceded] == ["1", "2"]


def test_a_suspension_is_set_and_cleared() -> None:
    asleep = applied(charter, ROOT, Suspended(instance_id="w", suspend_info=WAIT))
    assert active_leaves(asleep) == []
    awake = applied(charter, asleep, Resumed(instance_id="w", suspend_id="s"))
    assert awake == ROOT
    assert code_of(Resumed(instance_id="w", suspend_id="t"), asleep) == "suspend_id_mismatch"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (StatePatch(instance_id="r", patch={"legs": 3}), "state_patch_invalid"),
        (StatePatch(instance_id="nobody", patch={}), "unknown_instance"),
        (PackPatch(pack_name="likes", patch={"currency": 3}), "state_patch_invalid"),
        (PackPatch(pack_name="like", patch={}), "unknown_ref"),
        (PackPatch(pack_name="likes", patch={}, owner_id="nobody"), "unknown_instance"),
        (Transitioned(instance_id="r", node={"ref": "dsk"}), "unknown_ref"),
        (Transitioned(instance_id="r", node={"ref": "billing"}), "missing_target_state"),
        (Transitioned(instance_id="r", node={"ref": "fare_watch"}, state={"leg": 1}), "state_patch_invalid"),
        (Transitioned(instance_id="w", node={"ref": "desk"}, state=None), "state_patch_invalid"),
        (Spawned(parent_instance_id="nobody", children=(oslo("a"),)), "unknown_instance"),
        (Spawned(parent_instance_id="r", children=(oslo("w"),)), "tree_cycle"),
        (Spawned(parent_instance_id="w", children=(NewChild(node={"ref": "desk"}),)), "two_primaries"),
        (Ceded(instance_id="nobody"), "unknown_instance"),
        (Suspended(instance_id="nobody", suspend_info=WAIT), "unknown_instance"),
        (Resumed(instance_id="w", suspend_id="s"), "not_suspended"),
        (Resumed(instance_id="nobody"), "unknown_instance"),
    ],
)
def test_a_change_that_cannot_be_leaves_the_tree_alone(change: Change, code: str) -> None:
    assert code_of(change) == code


def test_a_cede_of_the_root_leaves_the_tree_and_still_hands_over() -> None:
    done = apply_changes(charter, ROOT, [Ceded(instance_id="r", content="all")])
    assert done.root is ROOT
    assert [ceded.content for ceded in done.ceded] == ["all"]


ids = st.sampled_from(["r", "w", "a", "b", "c"])
changes = st.one_of(
    st.builds(lambda i, n: StatePatch(instance_id=i, patch={"legs": n}), ids, st.just([]) | st.just(3)),
    st.builds(lambda i, n: StatePatch(instance_id=i, patch={"leg": n}), ids, st.just("x") | st.none()),
    st.builds(
        lambda i, n: Transitioned(instance_id=i, node={"ref": n}),
        ids,
        st.sampled_from(["desk", "fare_watch", "nowhere"]),
    ),
    st.builds(
        lambda i, new, n, b: Spawned(
            parent_instance_id=i,
            children=(NewChild(node={"ref": n}, state={"leg": "x"}, id=new, background=b),),
        ),
        ids,
        ids,
        st.sampled_from(["desk", "fare_watch"]),
        st.booleans(),
    ),
    st.builds(lambda i: Ceded(instance_id=i), ids),
    st.builds(lambda i: Suspended(instance_id=i, suspend_info=WAIT), ids),
    st.builds(lambda i: Resumed(instance_id=i, suspend_id="s"), ids),
    st.builds(lambda n: PackPatch(pack_name="likes", patch={"currency": n}), st.just("NOK") | st.just(3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(changes, max_size=12))
def test_no_sequence_of_changes_breaks_a_tree_and_replay_gives_it_again(asked: list[Change]) -> None:
    done = apply_changes(charter, ROOT, asked)
    all_instances(done.root)
    check_invariants(done.root)
    for instance in all_instances(done.root):
        assert instance.node.schema.validate(instance.state) == instance.state
    assert sum(not leaf.is_worker for leaf in active_leaves(done.root)) <= 1
    refused = [change for change, _ in done.refused]
    taken = [c for c in asked if not any(c is r for r in refused)]
    assert replayed(charter, ROOT, taken) == done.root
    assert desk.initial_state == Desk().model_dump()
    assert fare_watch.worker
