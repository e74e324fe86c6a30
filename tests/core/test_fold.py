"""Folding bodies gives the very snapshot that applying them one by one gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flat.core.codec import Codec
from flat.core.events import Spent
from flat.core.failure import Failure
from flat.core.fold import Fold
from flat.core.snapshot import Instance, Snapshot
from flat.errors import IncompatibleSnapshot
from flat.spec.schema import schema

CODEC = Codec()
KEYS = st.sampled_from(["a", "b", "$c", "$$d"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.binary(max_size=3) | st.just("x" * 17_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
CONTEXTS = st.dictionaries(KEYS, VALUES, max_size=3)
IDS = st.lists(st.sampled_from(["0/1/x", "0/1/y", "0/1/z", "0/2/x.1", "0/2/x.2"]), unique=True, max_size=5)


@st.composite
def instances(draw: Any, key: str) -> Instance:
    return Instance(
        key, draw(st.sampled_from(["n", "m"])), draw(st.sampled_from(["", "x"])), draw(st.integers(0, 3)),
        draw(CONTEXTS), draw(VALUES), draw(VALUES | CONTEXTS), tuple(draw(IDS)),
        draw(st.none() | st.integers(0, 9)), None, tuple(draw(st.lists(st.just("1"), max_size=1))), None,
    )  # fmt: skip


@st.composite
def snapshots(draw: Any) -> Snapshot:
    keys = draw(st.sampled_from([["0"], ["0"], ["0", "1"]]))
    return Snapshot(
        "e", draw(st.sampled_from(["running", "done", "limit"])), draw(st.integers(0, 3)),
        {key: draw(instances(key)) for key in keys}, Spent(calls=draw(st.integers(0, 2))),
        draw(st.sampled_from([None, 5])), None, 1000.0, 1000.0 + draw(st.integers(0, 5)), draw(VALUES),
        draw(st.none() | st.just(Failure(type="E", message="no"))), draw(st.sampled_from(["", "\ud800"])),
        log_length=draw(st.integers(0, 2)),
    )  # fmt: skip


def appended(before: Snapshot, value: Any) -> Snapshot:
    """The same, with a list in the context that has grown."""
    root = before.instances["0"]
    grown = {k: [*v, value] if isinstance(v, list) else v for k, v in root.context.items()}
    return replace(before, instances={**before.instances, "0": replace(root, context=grown)})


@given(st.lists(st.tuples(snapshots(), VALUES, st.booleans()), min_size=1, max_size=5))
def test_a_fold_is_what_the_deltas_applied_one_by_one_are(chain: list[tuple[Snapshot, Any, bool]]) -> None:
    first, blobs = CODEC.base(chain[0][0])
    fold = Fold()
    fold.add(first, base=True)
    stored = applied = CODEC.snapshot(first, blobs)
    for snapshot, value, base in chain[1:]:
        for new in (snapshot, appended(snapshot, value)):
            body, more = CODEC.base(new) if base else CODEC.delta(stored, new)
            blobs |= more
            fold.add(body, base=base)
            applied = CODEC.snapshot(body, blobs) if base else CODEC.applied(applied, body, blobs)
            stored = new
    assert fold.snapshot(CODEC, blobs) == applied
    assert fold.may_refer or not blobs


VALIDATOR = jsonschema.Draft7Validator(schema("checkpoint"))


@settings(max_examples=40, deadline=None)
@given(snapshots(), snapshots(), VALUES)
def test_every_body_is_as_its_schema_says(old: Snapshot, new: Snapshot, value: Any) -> None:
    for body in (CODEC.first(old), CODEC.delta(old, new)[0], CODEC.delta(old, appended(old, value))[0]):
        VALIDATOR.validate(orjson.loads(body))


@pytest.mark.parametrize("body", [b"{}", b'{"t":0,"+":{"gone":[1]}}', b'{"t":0,"i":{"7":null}}', b"[", b"[]"])
def test_a_damaged_delta_is_an_error(body: bytes) -> None:
    fold = Fold()
    fold.add(CODEC.first(Snapshot("e", "running", 0, {"0": Instance("0", "n", "", 0, {})})), base=True)
    with pytest.raises(IncompatibleSnapshot, match="damaged"):
        fold.add(body, base=False)
