"""The listener, woken as systemd would wake it: by what the generated units say, word for word."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from .conftest import Commands


def parsed(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(unit, encoding="utf-8")
    return parser


@pytest.mark.parametrize("name", ["listener_os"])
def test_an_order_touches_what_the_unit_watches_and_what_the_unit_starts_takes_it(
    copied: Path, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAT_TRIGGER_PATH", str(tmp_path / "trigger"))
    place = ["--trigger-path", str(tmp_path / "trigger")]
    units = tmp_path / "units"
    assert commands(copied, ["run", ".", "--id", "table4"]).code == 4
    said = commands(copied, ["dispatch", "--print-units", "systemd", "--install-units", str(units), *place])
    assert said.code == 0, said.text
    (service,), (path,) = units.glob("*.service"), units.glob("*.path")
    watched = Path(parsed(path)["Path"]["PathChanged"])
    start = parsed(service)["Service"]
    for order, status in (({"order": "tea"}, "waiting"), ({"order": "cake", "paid": True}, "done")):
        os.utime(watched, (0, 0))
        assert commands(copied, ["signal", "table/4", json.dumps(order), *place]).code == 0
        assert watched.stat().st_mtime > 0, "nothing would have started the service"
        subprocess.run(
            shlex.split(start["ExecStart"]), cwd=start["WorkingDirectory"].strip('"'), check=True, timeout=60
        )
        shown = json.loads(commands(copied, ["runs", "show", "table4", "--json"]).text)
        assert shown["status"] == status
    assert shown["output"] == {"table": 4, "orders": ["tea", "cake"]}
