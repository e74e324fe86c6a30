"""Which layer may import which, and what stays unloaded until it is needed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("litellm", "openai", "httpx", "aiohttp", "requests")
PUBLIC = Path(__file__).parent.parent / "golden" / "public_names.txt"
MACHINE = """\
spec: flatmachine
spec_version: "2.5.0"
data:
  name: small
  context: {n: 1}
  states:
    start: {type: initial, transitions: [{to: end}]}
    end: {type: final, output: {n: "{{ context.n }}"}}
"""


def test_layers_point_down_and_the_core_is_pure() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def watched(code: str, folder: Path) -> dict[str, list[str]]:
    """Run code in a new process; which heavy modules it loaded, and which sockets it opened."""
    script = f"""
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
try:
{textwrap.indent(code, "    ")}
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("\\n" + json.dumps({{"loaded": loaded, "sockets": opened}}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def command(*arguments: str) -> str:
    return f"sys.argv = {['flat', *arguments]!r}\nfrom flat.cli import main\nmain()"


@pytest.mark.parametrize(
    "code",
    [
        "import flat",
        "import flat\nfor name in flat.__all__: getattr(flat, name)",
        "import flat\nflat.load('small.yml')",
        command("--help"),
        command("validate", "small.yml"),
        command("graph", "small.yml"),
    ],
    ids=["import", "every public name", "load", "--help", "validate", "graph"],
)
def test_no_model_client_is_loaded_and_no_socket_opened(code: str, tmp_path: Path) -> None:
    (tmp_path / "small.yml").write_text(MACHINE)
    found = watched(code, tmp_path)
    assert found["loaded"] == []
    assert found["sockets"] == []


def test_a_run_in_memory_loads_no_database(tmp_path: Path) -> None:
    code = """
import anyio, flat
async def main():
    async with flat.Runtime(flat.MemoryStore()) as runtime:
        await runtime.start(flat.load("small.yml"))
anyio.run(main)
assert "sqlite3" not in sys.modules
"""
    (tmp_path / "small.yml").write_text(MACHINE)
    assert watched(code, tmp_path)["loaded"] == []


def test_the_public_names_are_these() -> None:
    import flat

    assert dir(flat) == flat.__all__
    if os.environ.get("FLAT_REGENERATE"):
        PUBLIC.write_text("\n".join(flat.__all__) + "\n")
    assert flat.__all__ == PUBLIC.read_text().split()
    for name in flat.__all__:
        assert getattr(flat, name) is not None, name


@pytest.mark.parametrize("package", ["flat", "flat.tree"])
def test_type_checkers_see_every_public_name_where_it_is(package: str) -> None:
    """What is imported for them and where a name is looked up when it is used are two lists of the same."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    (block,) = [
        part for part in tree.body if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING"
    ]
    seen = {
        name.asname or name.name: f"{part.module}.{name.name}"
        for part in block.body
        if isinstance(part, ast.ImportFrom)
        for name in part.names
    }
    assert sorted(seen) == module.__all__
    for name, place in seen.items():
        home, _, inner = place.rpartition(".")
        assert getattr(module, name) is getattr(importlib.import_module(home), inner), name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import flat

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flat.nothing  # noqa: B018
