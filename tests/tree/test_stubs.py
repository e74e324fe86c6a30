"""The typed client that is generated from a charter's description."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from travel import charter

from flat.tree import Charter, Command, Node, Pack, command_result
from flat.tree.stubs import client_stubs


class Leg(BaseModel):
    city: str
    via: list[Leg] = []
    kind: Literal["one", "round"] | None = None


def rich() -> Charter:
    schema = {
        "type": "object",
        "properties": {
            "leg": {"$ref": "#/$defs/Leg"},
            "seat": {"enum": ["aisle", "window"]},
            "from": {"type": ["string", "null"]},
            "class": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "odd": {"enum": [1.5]},
        },
        "required": ["leg"],
        "$defs": Leg.model_json_schema()["$defs"],
    }
    booking = Command("book", 'Book "it"', schema, lambda given: command_result())
    anything = Command("do it", execute=lambda given: command_result())
    node = Node("x", dict, commands=[booking])
    return Charter("rich", nodes={"desk": node}, packs=[Pack("import", commands=[anything])])


USE = """
from client import commands
commands.desk.book({"leg": {"city": "Oslo", "via": [{"city": "Rome"}]}, "seat": "aisle", "class": [{"n": 1}]})
commands.import_.do_it({"a": 1})
commands.desk.book({})  # wrong
commands.desk.book({"leg": {"city": 3}})  # wrong
commands.desk.book({"leg": {"city": "Oslo"}, "seat": "roof"})  # wrong
commands.desk.sit({})  # wrong
"""


def test_a_generated_client_is_checked_by_type_checkers(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(client_stubs(rich().describe()))
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--output=json", "client.py", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    errors = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [number for number, line in enumerate(USE.splitlines(), 1) if "# wrong" in line]
    assert sorted({(e["file"], e["line"]) for e in errors}) == [("use.py", line) for line in wrong]


def test_a_generated_client_makes_invocations() -> None:
    made: dict[str, Any] = {}
    exec(client_stubs(charter.describe()), made)
    assert made["commands"].desk.clear() == {"type": "command", "name": "clear", "input": {}}
    assert made["CHARTER_HASH"] == charter.describe()["hash"]


def test_the_same_charter_gives_the_same_client() -> None:
    assert client_stubs(rich().describe()) == client_stubs(rich().describe())


def test_a_charter_without_commands_still_gives_a_module() -> None:
    exec(client_stubs(Charter("none").describe()), {})
