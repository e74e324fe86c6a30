"""Values and their places."""

from __future__ import annotations

import pytest
import yaml

from flat.errors import SpecError
from flat.spec import Document, Limits
from flat.spec.parse import _PureParser, parse


def code_of(text: bytes | str, file: str = "f.yml", **limits: int) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, file, limits=Limits(**limits))
    return caught.value.problems[0].code


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True), ("False", False), ("yes", "yes"), ("NO", "NO"), ("on", "on"), ("y", "y"),
        ("null", None), ("~", None), ("", None), ("1", 1), ("-7", -7), ("010", 10), ("0o10", 8), ("0x1F", 31),
        ("1.10", 1.1), ("1e3", 1000.0), (".5", 0.5), ("+1.", 1.0), ("12:30", "12:30"), ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("'1'", "1"), ('"true"', "true"), ("-", [None]),
        ("!!str 1.10", "1.10"), ("!!float 1", 1.0), ("=", "="), ("0b1", "0b1"), ("1.", 1.0),
    ],
)  # fmt: skip
def test_plain_values_follow_the_core_schema_of_yaml_1_2(written: str, value: object) -> None:
    found = parse(f"a:\n  {written}\n", "f.yml").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_values_equal_those_of_the_stock_loader_where_both_versions_of_yaml_agree() -> None:
    text = "a: [1, 2.5, x, {b: c}]\nd: |\n  one\n  two\ne: >\n  one\n  two\nf: 'it''s'\ng: \"t\\tab\"\n"
    assert parse(text, "f.yml").value == yaml.safe_load(text)


def test_every_value_knows_its_place() -> None:
    document = parse("a:\n  b: [1, two]\n  'c d': x\n", "f.yml")
    assert str(document.locate(("a", "b"))) == "f.yml:2:6"
    assert str(document.locate(("a", "b"), key=True)) == "f.yml:2:3"
    assert str(document.locate(("a", "b", 1))) == "f.yml:2:10"
    assert str(document.locate(("a", "nothing", "here"))) == "f.yml:1:1"
    assert str(document.locate(())) == "f.yml:1:1"


def test_data_that_came_from_no_file_has_no_places() -> None:
    assert Document({"a": 1}).locate(("a",)) is None


@pytest.mark.parametrize(
    ("text", "wanted", "place"),
    [
        ("a: one BAD\n", "BAD", "f.yml:1:8"),
        ('a: "one BAD"\n', "BAD", "f.yml:1:9"),
        ("a: 'it''s BAD'\n", "BAD", "f.yml:1:11"),
        ('a: "t\\tab \\u00e4 BAD"\n', "BAD", "f.yml:1:18"),
        ("a: |\n  one\n  two BAD\n", "BAD", "f.yml:3:7"),
        ("a: |-  # why\n\n  one\n    BAD\n", "BAD", "f.yml:4:5"),
        ("a: >\n  one\n  two\n\n  BAD\n", "BAD", "f.yml:5:3"),
        ("a: one\n  two BAD\n", "BAD", "f.yml:2:7"),
        ("a: &x one BAD\n", "BAD", "f.yml:1:11"),
        ("a: BAD", "BAD", "f.yml:1:4"),
    ],
)
def test_a_place_inside_a_text_is_found_through_quotes_and_blocks(text: str, wanted: str, place: str) -> None:
    document = parse(text, "f.yml")
    assert str(document.locate_in(("a",), document.value["a"].index(wanted))) == place


def test_an_offset_beyond_the_end_is_still_a_place() -> None:
    document = parse("a: |\n  one\nb: ''\n", "f.yml")
    assert document.locate_in(("a",), 99) is not None
    assert str(document.locate_in(("b",), 0)) == "f.yml:3:4"


def test_merged_keys_come_first_and_give_way_to_written_ones() -> None:
    document = parse("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n", "f.yml")
    assert document.value["use"] == {"x": 1, "y": 3}
    assert list(document.value["use"]) == ["x", "y"]
    assert str(document.locate(("use", "x"))) == "f.yml:1:14"


def test_json_files_have_places_too() -> None:
    document = parse('{\n\t"a": {"b": "x\\ud83d\\ude00\\/"}\n}', "f.json")
    assert document.value == {"a": {"b": "x😀/"}}
    assert str(document.locate(("a", "b"))) == "f.json:2:13"


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"a": 1,}', "1:9"), ("{'a': 1}", "1:2"), ('{"a": 1\n"b": 2}', "2:1"), ("a: 1", "1:1")],
)
def test_a_json_file_is_held_to_the_rules_of_json(text: str, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "f.json")
    assert str(caught.value).startswith(f"f.json:{place}: error[json]")


def test_a_key_used_twice_in_json_is_found() -> None:
    assert [p.code for p in parse('{"a": 1, "a": 2}', "f.json").problems] == ["duplicate-key"]


def test_a_437_byte_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert code_of("\n".join(lines)) == "alias"


def test_a_merge_bomb_is_refused() -> None:
    lines = ["b0: &b0 {" + ", ".join(f"k{n}: 1" for n in range(500)) + "}"]
    lines += [f"b{n}: {{<<: *b0}}" for n in range(1, 60)]
    assert code_of("\n".join(lines)) == "alias"


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "a:\n" + "".join(f"{' ' * n}- \n" for n in range(300))]
)
def test_deep_nesting_is_refused(text: str) -> None:
    assert code_of(text) in ("too-deep", "yaml")


def test_deep_json_is_refused() -> None:
    assert code_of("[" * 200_000, "f.json") == "too-deep"


def test_a_file_of_ten_megabytes_is_refused_at_once() -> None:
    assert code_of(b"a: " + b"x" * 10_000_000) == "too-large"


def test_too_many_values_are_refused() -> None:
    assert code_of("[" + "1," * 500_000 + "]") == "too-large"
    assert code_of("- [1]\n" * 20, nodes=10) == "too-large"


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe\xfa", b"a: \x80", b"a: \x00", b"a: \x07", "a: \u200b\ufffe".encode(), b"\xfe\xffa", b"\xc3("],
)
def test_what_is_not_text_is_refused(data: bytes) -> None:
    assert code_of(data) == "encoding"


@pytest.mark.parametrize(
    "data",
    [
        "a: ä\n".encode(),
        "\ufeffa: ä\n".encode(),
        "\ufeffa: ä\n".encode("utf-16-le"),
        "\ufeffa: ä\n".encode("utf-16-be"),
    ],
)
def test_utf_8_and_marked_utf_16_are_read(data: bytes) -> None:
    assert parse(data, "f.yml").value == {"a": "ä"}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(newline: str) -> None:
    document = parse(f"a: 1{newline}b:{newline}  c: 2{newline}", "f.yml")
    location = document.locate(("b", "c"))
    assert str(location) == "f.yml:3:6"
    assert location is not None
    assert location.text == "  c: 2"


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object:os.system",
        "!!python/name:os.system",
        "!!binary",
        "!!set",
        "!!timestamp",
        "!x",
        "!<x>",
        "!!omap",
    ],
)
def test_tags_beyond_core_are_refused(tag: str) -> None:
    assert code_of(f"a: {tag} 1") == "tag"


def test_the_pure_parser_gives_the_same_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: [1, {b: c}]\nd: |\n  x\n  y\n1: one\nd: 2\n"
    fast = parse(text, "f.yml")
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert issubclass(_PureParser, yaml.parser.Parser)
    slow = parse(text, "f.yml")
    assert (slow.value, slow.problems) == (fast.value, fast.problems)
    for path in (("a", 1, "b"), ("d",), ("1",)):
        assert slow.locate(path) == fast.locate(path)
    for bad in ("a: {{ x }}", "a:\n\tb: 1", 'a: "x', "a: b: c", "a: *b", "a: [1"):
        assert code_of(bad) in ("quote", "yaml", "alias")
