"""What is kept up as it grows is what is made at once: trees under many changes, and requests of a long history."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from running import charter, desk, helper, inner, worker

from flat.errors import CallRefused
from flat.tree import (
    Instance,
    Message,
    Source,
    apply_changes,
    assistant_message,
    serialize_instance,
    tool_result,
    user_message,
)
from flat.tree.batch import Batch
from flat.tree.changes import (
    Ceded,
    Change,
    NewChild,
    Resumed,
    Spawned,
    StatePatch,
    Suspended,
    SuspendInfo,
    Transitioned,
)
from flat.tree.instance import path_to
from flat.tree.request import Views, chat_messages, visible_messages

IDS = ["r", "a", "b", "c", "d", "e", "new1", "new2", "nobody"]
OFFICE = charter("x")


def tree() -> Instance[Any]:
    deep = Instance(worker, {"task": "d"}, [Instance(helper, {}, id="e")], id="d")
    below = [Instance(worker, {}, id="b"), Instance(helper, {}, id="c"), deep]
    return Instance(desk, {}, [Instance(inner, {}, below, id="a")], id="r")


ids = st.sampled_from(IDS)
changes = st.one_of(
    st.builds(StatePatch, instance_id=ids, patch=st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3))),
    st.builds(Ceded, instance_id=ids, content=st.sampled_from([None, "done"])),
    st.builds(
        Suspended, instance_id=ids, suspend_info=st.just(SuspendInfo(suspend_id="s", reason="r", suspended_at="t"))
    ),
    st.builds(Resumed, instance_id=ids, suspend_id=st.sampled_from(["", "s", "other"])),
    st.builds(
        Spawned,
        parent_instance_id=ids,
        children=st.lists(
            st.builds(
                NewChild,
                node=st.sampled_from([{"ref": "worker"}, {"ref": "inner"}]),
                state=st.just({}),
                id=st.sampled_from(["new1", "new2"]),
            ),
            max_size=2,
        ).map(tuple),
    ),
    st.builds(Transitioned, instance_id=ids, node=st.just({"ref": "billing"}), state=st.just({"paid": True})),
)  # fmt: skip


@given(st.lists(st.tuples(changes, st.booleans()), max_size=12))
@settings(deadline=None, max_examples=300)
def test_a_batch_of_changes_gives_the_tree_that_they_give_one_by_one(
    asked: list[tuple[Change, bool]],
) -> None:
    root, batch = tree(), Batch(OFFICE, tree())
    for change, looks in asked:
        done = apply_changes(OFFICE, root, [change])
        refused = batch.apply([change])
        assert [error.code for _, error in refused] == [error.code for _, error in done.refused]
        root = done.root
        if looks:  # looking in between rebuilds the tree
            assert serialize_instance(batch.root, OFFICE) == serialize_instance(root, OFFICE)
        for one in IDS:
            path = path_to(root, one)
            assert [i.id for i in batch.path(one)] == [i.id for i in path]
            assert not path or batch.has_children(one) == bool(path[-1].children)
    assert serialize_instance(batch.root, OFFICE) == serialize_instance(root, OFFICE)


# -- requests ------------------------------------------------------------------------------------


def said(who: str, text: str, calls: list[str]) -> Message:
    used = [{"type": "tool_use", "id": one, "name": "look", "input": {}} for one in calls]
    words = [{"type": "text", "text": text}] if text else []
    return assistant_message([*words, *used], source=Source(instance_id=who))


def given_back(who: str, calls: list[str]) -> Message:
    return user_message([tool_result(one, f"of {one}") for one in calls], source=Source(instance_id=who))


speakers = st.sampled_from(["r", "w"])
call_ids = st.lists(st.sampled_from(["1", "2"]), max_size=2)
texts = st.sampled_from(["", "hello", "again"])
messages = st.one_of(
    st.builds(said, speakers, texts, call_ids),
    st.builds(given_back, speakers, call_ids),
    texts.map(user_message),
    texts.map(lambda text: user_message(text, to="w")),
)


def asked(make: Any) -> Any:
    try:
        return make()
    except CallRefused as refused:
        return refused.code


@given(st.lists(messages, max_size=14), st.sampled_from([desk, worker]))
@settings(deadline=None, max_examples=300)
def test_a_request_that_is_kept_up_is_the_one_that_is_made_at_once(history: list[Message], node: Any) -> None:
    leaf, views = Instance(node, {}, id="w", brief="Begin"), Views()
    for until in range(len(history) + 1):
        so_far = history[:until]
        whole = asked(lambda told=so_far: chat_messages(visible_messages(told, leaf)))
        assert asked(lambda told=so_far: views.chat(told, leaf)) == whole


@given(st.lists(messages, max_size=14))
@settings(deadline=None, max_examples=300)
def test_every_request_is_one_that_providers_take(history: list[Message]) -> None:
    chat = asked(lambda: chat_messages(history))
    if chat == "empty_request":
        return
    assert chat[-1]["role"] != "assistant"
    waiting: list[str] = []
    for message in chat:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, "a result is missing or out of place"
        waiting = [call["id"] for call in message.get("tool_calls", ())]
    assert not waiting
    roles = [message["role"] for message in chat]
    assert all(a != "user" or b != "user" for a, b in itertools.pairwise(roles))
