"""Hostile files: bombs, tags, odd keys and large files are refused at once, in little memory."""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import sys

import pytest
from attacks import run_in_a_child


def _bomb(levels: int, width: int, open_: str = "[", close: str = "]") -> str:
    lines = ["a0: &a0 lol"]
    lines += [f"a{n}: &a{n} {open_}{', '.join([f'*a{n - 1}'] * width)}{close}" for n in range(1, levels)]
    return "\n".join(lines)


def _merges(levels: int) -> str:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(200)) + "}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 100)}], x{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines)


TAGS = (
    "!!python/object/apply:os.system ['id']", "!!python/object:os.system {}", "!!python/name:os.system", "!!python/module:os",
    "!!python/object/new:subprocess.Popen [['id']]", "!!python/tuple [1, 2]", "!!python/str x", "!!python/bytes eA==", "!!binary eA==",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2026-01-01", "!!merge <<", "!!value =", "!custom x", "!env HOME",
    "!include /etc/passwd", "!<tag:yaml.org,2002:python/object/apply:os.system> ['id']", "!!js/function 'x'", "!ruby/object:Gem {}",
    "!!java.lang.Runtime {}", "!secret x", "!!int x", "!!bool 3", "!!map []", "!!float yes", "!!null 1",
)  # fmt: skip
KEYS = (
    "? [1, 2]\n: x", "? {a: b}\n: x", "1: x", "1.5: x", "true: x", "null: x", "~: x", ": x", "{{ x }}: y", "2026-01-01: {a: 1}\n1e5: y", "a: 1\na: 2",
    "a: &a [1]\n*a : x", "&k [1]: x", "!!python/name:os.system : x", "a: {<<: 1}", "a: {<<: [1]}", "a: {<<: text}", "0x10: y",
)  # fmt: skip
SIZES = (
    "a: " + "x" * 10_000_000, "a: '" + "x" * 10_000_000 + "'", "- x\n" * 2_500_000, "#" * 10_000_000, "a: |\n" + "  line\n" * 1_400_000,
    "{" * 10_000_000, "- " * 5_000_000, "\n" * 10_000_000, "x" * 10_000_000 + ": 1",
    "[" + "1," * 900_000 + "]", "[" * 1_000_000, "{a: " * 300_000, "- " * 900_000, "- - - - " * 200_000, "? " * 900_000, "a:\n" + " b:\n" * 300_000,
    "".join(" " * n + "a:\n" for n in range(1900)), "&a " * 500_000 + "x", "*a " * 500_000, "!!str " * 300_000 + "x",
    "a: " + "9" * 1_900_000, "a: 1e" + "9" * 100, "a: !" + "x" * 1_900_000, "%TAG ! x" * 200_000,
    "".join(f"a{n}: &b{n} {n}\n" for n in range(99_000)) + "".join(f"c{n}: *b{n}\n" for n in range(25_000)), "a: &a [*a]", "a: &a {b: *a}",
    "---\n" * 400_000, "\x00" * 1_000_000, "a: \x1b[2J", "a: \ud800", "\t" * 1_900_000, ("a: 1\n" * 350_000),
)  # fmt: skip
HARMLESS = (
    "'" * 1_900_000,
    '"' + "\\x41" * 400_000 + '"',
    "a: 0x" + "f" * 1_900_000,
    "a: " + "1_" * 900_000,
    "a: >-\n" + "\n" * 1_900_000,
    "\ufeff" * 600_000,
)
"""Large, but only text."""
BOMBS = (_bomb(9, 9), _bomb(30, 2), _bomb(4, 60), _bomb(9, 9, "{x: [", "]}"), _merges(3), _merges(5))

_CHILD = """
import json, resource, sys, time
from flat.errors import SpecError
from flat.spec.parse import parse
from flat.spec.load import load_machine_dict
sources = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
base = peak()
for source in sources:
    began, codes, kind = time.process_time(), [], ""
    try:
        document = parse(source, "m.yml")
        codes = [p.code for p in document.problems if p.severity == "error"]
        kind = type(document.value).__name__
    except SpecError as error:
        codes = [p.code for p in error.problems]
        kind = str(error)[:300]
    print(json.dumps([time.process_time() - began, peak() - base, codes, kind]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
@pytest.mark.parametrize("sources", [TAGS, KEYS, SIZES, BOMBS], ids=["tags", "keys", "sizes", "bombs"])
def test_hostile_files_are_refused_at_once(sources: tuple[str, ...]) -> None:
    texts = tuple(f"a: {source}" for source in sources) if sources is TAGS else sources
    measured = run_in_a_child(_CHILD, texts)
    slow = [(s[:60], seconds) for s, (seconds, *_) in zip(texts, measured, strict=True) if seconds > 2]
    assert slow == []
    assert max(megabytes for _, megabytes, *_ in measured) < 128
    accepted = [s[:60] for s, (_, _, codes, _) in zip(texts, measured, strict=True) if not codes]
    assert accepted == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_large_texts_are_read_in_no_time() -> None:
    measured = run_in_a_child(_CHILD, HARMLESS)
    assert all(seconds < 2 and megabytes < 64 and not codes for seconds, megabytes, codes, _ in measured)


def test_there_are_files_of_ten_megabytes() -> None:
    assert sum(len(source) >= 9_500_000 for source in SIZES) >= 8
