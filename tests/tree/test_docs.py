"""What `docs/trees.md` shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Node

PAGE = Path(__file__).parent.parent.parent / "docs" / "trees.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def test_the_snippets_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "trees_page"}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    scripted = ScriptedExecutor(
        {
            "desk": [
                say("On it", call("add_leg", city="Turin"), call("transition_watch", leg="Oslo")),
                "Oslo costs 118 EUR.",
                "And back it is.",
            ],
            "fare_watch": [say("", call("transition_report", text="118 EUR"))],
        }
    )
    charter = names["charter"]
    names["charter"] = Charter(charter.name, executor=scripted, nodes=charter.nodes)
    anyio.run(names["talk"])
    shown = capsys.readouterr().out
    assert shown == "tool_use On it\ncede \nend_turn Oslo costs 118 EUR.\nAnd back it is.\n"
    asking = Node("x", name="x", transitions=[names["approve"]], commands=[names["clear"]])
    assert (list(asking.transitions), list(asking.commands)) == (["approve"], ["clear"])


def test_the_entry_of_a_machine_is_one_that_loads() -> None:
    from flat.spec.machine import TreeRef

    (entry,) = [line for block in blocks("yaml") for line in block.splitlines() if "tree:" in line]
    import yaml

    told = yaml.safe_load(entry.split("#")[0])
    assert TreeRef.model_validate(told["desk"]).until == "cede"
