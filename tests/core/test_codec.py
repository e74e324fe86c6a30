"""Values, snapshots and deltas to bytes and back; what cannot be stored is refused with its path."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import pathlib
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field

from flat.bindings import standard_types, storable
from flat.core.codec import Codec, kept_prefix
from flat.core.events import Spent
from flat.core.failure import Failure
from flat.core.grown import Grown
from flat.core.snapshot import ROOT, Instance, Snapshot
from flat.core.storable import BLOB_SIZE, Opaque
from flat.drivers.draft import draft_of, settled_context
from flat.errors import BindingError, IncompatibleSnapshot, NotStorable


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    born: datetime.date | None = None
    nick: str = Field(default="", alias="nickName")
    tags: set[str] = set()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def initial(self) -> str:
        return self.name[:1]


TYPES = standard_types()
for cls in (Colour, Rights, Person):
    storable(TYPES, cls)
CODEC = Codec(TYPES)

TEXT = st.text(st.characters(), max_size=12)  # surrogates too
KEYS = st.text(max_size=6) | st.sampled_from(["$", "$$", "$x", "blob", "", "format"])
FLAGS = [Rights.READ, Rights.WRITE, Rights.READ | Rights.WRITE, Rights(0)]
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | TEXT
    | st.binary(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.sampled_from(Colour)
    | st.sampled_from(FLAGS)
    | st.sampled_from([pathlib.Path("a/b"), pathlib.PureWindowsPath("c:\\d"), pathlib.PurePosixPath("/e")])
    | st.builds(
        Person,
        name=st.text(max_size=5),
        born=st.none() | st.dates(),
        nickName=st.text(max_size=3),
        tags=st.sets(st.text(max_size=3), max_size=3),
    )
)
HASHABLE = st.integers() | TEXT | st.tuples(st.integers(), TEXT) | st.sampled_from(Colour) | st.uuids()
VALUES = st.recursive(
    ATOMS | st.sets(HASHABLE, max_size=4) | st.frozensets(HASHABLE, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def there_and_back(value: Any) -> Any:
    blobs: dict[str, bytes] = {}
    text = orjson.dumps(CODEC.plain(value, "value", blobs))
    return CODEC.value(orjson.loads(text), blobs)


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("size", [BLOB_SIZE - 1, BLOB_SIZE, BLOB_SIZE + 1])
@pytest.mark.parametrize("letter", ["x", "ü", "\ud800"])
def test_a_long_text_is_a_blob_and_comes_back(size: int, letter: str) -> None:
    blobs: dict[str, bytes] = {}
    data = CODEC.plain([letter * size, letter * size], "value", blobs)
    assert len(blobs) == (size >= BLOB_SIZE)
    assert CODEC.value(data, blobs) == [letter * size, letter * size]


class Mine:
    pass


class SubPerson(Person):
    age: int = 3


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": math.nan}]}, "value.a[1].b"),
        ([math.inf], "value[0]"),
        ({"a": Mine()}, "value.a"),
        ({"a": {1: 2}}, "value.a key 1"),
        ({"a": {("x",): 2}}, "value.a key ('x',)"),
        ({"a": {"\ud800": 2}}, "value.a key '\\ud800'"),
        ((1, {"z": lambda: 1}), "value[1].z"),
        ({"p": Point(1, 2)}, "value.p"),
        ({"p": SubPerson(name="x")}, "value.p"),
        ({"g": (x for x in ())}, "value.g"),
        ({"c": bytearray(b"x")}, "value.c"),
        ({"e": ValueError("x")}, "value.e"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(NotStorable) as caught:
        CODEC.plain(value, "value", {})
    assert caught.value.path == path
    assert path in str(caught.value)


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,)], ids=["list", "dict", "tuple"]
)
@pytest.mark.parametrize("depth", [40, 60, 80, 150, 198, 238, 250, 5000])
def test_deep_nesting_is_stored_or_refused_and_never_breaks(wrap: Any, depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    snapshot = snapshot_of({"deep": value})
    try:
        body, blobs = CODEC.base(snapshot)
    except NotStorable as error:
        assert "nested too deeply" in str(error), depth  # noqa: PT017 - either end is right
    else:
        assert CODEC.snapshot(body, blobs) == snapshot


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotStorable, match="contains itself"):
        CODEC.plain(value, "value", {})


def test_subclasses_of_dict_and_list_are_stored_as_plain_ones() -> None:
    assert there_and_back(OrderedDict(a=defaultdict(list, b=Grown([1], [2])))) == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"{}",
        b'{"format": 1}',
        b'{"format": 99}',
        b'{"format": 1, "id": 3, "instances": []}',
    ],
)
def test_a_damaged_base_is_a_clear_error(body: bytes) -> None:
    with pytest.raises(IncompatibleSnapshot):
        CODEC.snapshot(body, {})


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"t":"x"}',
        b'{"t":0,"c":3}',
        b'{"t":0,"+":{"gone":[1]}}',
        b'{"t":0,"i":{"7":null}}',
    ],
)
def test_a_damaged_delta_is_a_clear_error(body: bytes) -> None:
    with pytest.raises(IncompatibleSnapshot):
        CODEC.applied(snapshot_of({"a": 1}), body, {})


@pytest.mark.parametrize(
    "data",
    [
        {"$": ["nothing", 1]},
        {"$": ["blob", "x"]},
        {"$": 3},
        {"$": ["Person", {"name": 3}]},
        {"$": ["datetime", "soon"]},
        {"$": ["Colour", "GREEN"]},
        {"$": ["set", [[1]]]},
        {"$": ["int", "x"]},
        {"$": ["text", "zz"]},
    ],
)
def test_a_stored_value_that_cannot_be_read_is_a_clear_error(data: Any) -> None:
    with pytest.raises(IncompatibleSnapshot):
        CODEC.value({"a": [data]}, {})


def test_an_opaque_codec_shows_unknown_types_and_writes_them_back() -> None:
    data = CODEC.plain({"who": Person(name="Ann"), "at": datetime.date(2024, 2, 29)}, "value", None)
    looking = Codec(opaque=True)
    seen = looking.value(data, {})
    assert isinstance(seen["who"], Opaque)
    assert seen["who"].name == "Person"
    assert looking.plain(seen, "value", None) == data
    with pytest.raises(IncompatibleSnapshot, match="not registered"):
        Codec().value(data, {})


def test_only_models_and_enums_register_themselves() -> None:
    with pytest.raises(BindingError):
        storable(standard_types(), Mine)


# -- snapshots and deltas ------------------------------------------------------------------------


def snapshot_of(context: dict[str, Any], **rest: Any) -> Snapshot:
    root = Instance(ROOT, "a", "action", 1, context, pending=("0/1/action",))
    return Snapshot("e1", "running", 1, {ROOT: root}, started_at=1000.0, at=1000.0, **rest)


CONTEXTS = st.dictionaries(KEYS, VALUES, max_size=5)
SPENT = st.builds(Spent, calls=st.integers(0, 9), cost=st.floats(0, 9), priced=st.booleans())
FAILURES = st.builds(
    Failure, type=st.text(max_size=5), message=TEXT, names=st.lists(st.text(max_size=3)).map(tuple)
)


@st.composite
def changed(draw: st.DrawFn, old: Snapshot) -> Snapshot:
    """Any snapshot that one turn could make of another."""
    context = dict(old.root.context)
    for key in draw(st.lists(st.sampled_from(sorted(context)), max_size=3)) if context else ():
        context.pop(key, None)
    for key in draw(st.lists(st.sampled_from(sorted(context)), max_size=3)) if context else ():
        if isinstance(context[key], list):
            more = draw(st.lists(VALUES, max_size=2))
            context[key] = draw(
                st.sampled_from([Grown(context[key], more), [*context[key], *more], more, []])
            )
    context.update(draw(st.dictionaries(KEYS, VALUES, max_size=2)))
    steps = old.steps + draw(st.integers(0, 2))
    step = draw(st.sampled_from([old.root.step, steps]))
    op = draw(st.sampled_from(["action", "call", "branch", ""]))
    usual = (f"0/{step}/{op}",)
    pending = draw(st.sampled_from([usual, (), (f"0/{step}/{op}.1",), (*usual, f"0/{step}/{op}.2")]))
    same_context = draw(st.booleans())
    root = replace(
        old.root,
        node=draw(st.sampled_from("abc")),
        op=op,
        step=step,
        pending=pending,
        context=old.root.context if same_context else context,
        output=draw(st.sampled_from([old.root.output, None]) | VALUES),
        local=draw(st.sampled_from([old.root.local, None, [1, "pause", 3.5]])),
        deadline=draw(st.sampled_from([old.root.deadline, None, 1234.56789])),
    )
    status = draw(st.sampled_from(["running", "running", "waiting", "limit", "in_doubt", "done", "failed"]))
    ended = status in ("done", "failed")
    return replace(
        old,
        status=status,
        steps=steps,
        instances={ROOT: root},
        at=1000.0 + draw(st.integers(0, 10**9)) / 1000,
        spent=draw(st.sampled_from([old.spent]) | SPENT),
        max_steps=draw(st.sampled_from([old.max_steps, None, 7])),
        max_agent_calls=draw(st.sampled_from([old.max_agent_calls, 3])),
        output=draw(VALUES) if ended else old.output,
        failure=draw(FAILURES) if status == "failed" else None,
        reason="" if status == "running" else draw(TEXT),
        log_length=old.log_length + draw(st.integers(0, 2)),
    )


@settings(max_examples=120, deadline=None)
@given(st.data(), CONTEXTS)
def test_deltas_rebuild_every_snapshot(data: st.DataObject, context: dict[str, Any]) -> None:
    live = stored = CODEC.snapshot(*CODEC.base(snapshot_of(context)))
    assert same(dict(stored.root.context), context)
    for _ in range(3):
        new = data.draw(changed(live))
        body, blobs = CODEC.delta(live, new)
        stored = CODEC.applied(stored, body, blobs)
        assert replace(stored, at=0.0) == replace(new, at=0.0)
        assert same(dict(stored.root.context), _plain(dict(new.root.context)))
        assert abs(stored.at - new.at) <= 0.001
        live = new
        assert CODEC.snapshot(*CODEC.base(live)) == live


def _plain(value: Any) -> Any:
    """Without `Grown`, which comes back as a list."""
    return {k: list(v) if isinstance(v, Grown) else v for k, v in value.items()}


def test_several_instances_have_their_own_deltas() -> None:
    two = snapshot_of({"a": 1})
    child = Instance("1", "b", "call", 2, {"x": [1]}, pending=("1/2/call",), parent=ROOT)
    born = replace(two, steps=2, instances={ROOT: replace(two.root, children=("1",)), "1": child})
    grown = replace(
        born, instances={**born.instances, "1": replace(child, context={"x": [1, 2]}, suspended="s")}
    )
    gone = replace(grown, instances={ROOT: replace(born.root, children=())})
    stored = two
    for old, new in ((two, born), (born, grown), (grown, gone)):
        stored = CODEC.applied(stored, *CODEC.delta(old, new))
        assert stored == new


def test_a_list_that_lies_where_another_one_lay_is_not_taken_for_it() -> None:
    context = {"a": [1, 2], "b": [9, 9]}
    draft = draft_of(context)
    draft["a"].append(3)
    first = settled_context(draft, context)
    draft = draft_of(first)
    draft["b"] = draft["a"]
    second = settled_context(draft, first)
    assert kept_prefix(first["b"], second["b"]) is None
    assert kept_prefix(context["a"], first["a"]) == 2


def test_only_what_was_appended_is_written() -> None:
    history = [{"text": "x" * 100} for _ in range(100)]
    old = snapshot_of({"history": history, "other": history[0]})
    context = draft_of(old.root.context)
    context["history"].append({"text": "new"})
    new = replace(
        old, instances={ROOT: replace(old.root, context=settled_context(context, old.root.context))}
    )
    body, _ = CODEC.delta(old, new)
    assert orjson.loads(body) == {"t": 0, "+": {"history": [{"text": "new"}]}}


@pytest.mark.parametrize("key", ["$", "$$", "$x"])
def test_context_keys_that_look_like_tags_are_only_keys(key: str) -> None:
    old = snapshot_of({})
    new = replace(old, instances={ROOT: replace(old.root, context={key: ["blob", "../../etc/passwd"]})})
    body, _ = CODEC.delta(old, new)
    assert b'{"$":["blob"' not in body
    assert CODEC.applied(old, body, {}) == new


def test_uuid_and_decimal_are_not_texts() -> None:
    value = {"u": uuid.UUID(int=1), "d": decimal.Decimal("1.10")}
    assert there_and_back(value) == value
