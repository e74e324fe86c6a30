"""What the README and `docs/` show can be typed as it stands: commands parse, Python compiles, files are accepted."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
import yaml

from flat.cli.app import app
from flat.errors import Problem, SpecError
from flat.spec.load import load_machine_dict

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND: Any = typer.main.get_command(app)
CONNECTORS = {"|", "&&", ";", ">", "2>", ">>"}


def shown(page: Path) -> Iterator[tuple[str, str]]:
    """The blocks of a page: what is fenced, by its language, and what is indented, as `sh` or `python`."""
    text = page.read_text()
    yield from re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
    for block in re.findall(
        r"(?:^    .*\n|^\n(?=    ))+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    ):
        block = textwrap.dedent(block)
        yield ("python" if re.search(r"^(import|from|async|def) ", block, re.M) else "sh"), block


def commands(page: Path) -> Iterator[list[str]]:
    """The calls of `flat` in the blocks of a page, as words."""
    for language, block in shown(page):
        if language not in ("sh", "console", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line.removeprefix("$ "), comments=True), ";"]:
                if word not in CONNECTORS:
                    words.append(word)
                    continue
                while words and ("=" in words[0] or words[0].endswith("$")):
                    del words[0]  # variables that are set for it
                if words and Path(words[0]).name == "flat":
                    yield words[1:]
                words = []


def parse(words: list[str]) -> None:
    """Parse a command line as `flat` would, and run nothing. Raises what it would complain of."""
    context = typer.Context(COMMAND, info_name="flat")
    command = COMMAND
    while isinstance(command, typer.core.TyperGroup):
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, list(words), parent=context)


CASES = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in commands(page)
]


@pytest.mark.parametrize("words", CASES)
def test_a_command_that_is_shown_is_one_that_flat_takes(words: list[str]) -> None:
    try:
        parse(words)
    except Exception as error:
        pytest.fail(f"flat {' '.join(words)}: {error}")


def test_options_that_the_text_names_are_there() -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", _help(COMMAND, typer.Context(COMMAND, info_name="flat"))))
    told = {
        (page.name, option)
        for page in PAGES
        for code in re.findall(r"`(?:flat )?([^`\n]*)`", page.read_text())
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)
        if "npm" not in code
    }
    assert not [f"{page}: {option}" for page, option in sorted(told) if option not in known]


def _help(command: Any, context: typer.Context) -> str:
    options = " ".join(
        word for parameter in command.params for word in parameter.opts + parameter.secondary_opts
    )
    below = command.commands.items() if isinstance(command, typer.core.TyperGroup) else ()
    return " ".join((options, *(_help(one, typer.Context(one, context, name)) for name, one in below)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_that_is_shown_compiles_and_finds_what_it_imports(page: Path) -> None:
    for language, block in shown(page):
        if language != "python":
            continue
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
        tree = compile(block, str(page), "exec", flags)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flat":
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{page.name}: from {node.module} import {name.name}"


def problems_of(config: Any, folder: Path) -> list[Problem]:
    try:
        return list(load_machine_dict(config, folder).problems)
    except SpecError as error:
        return list(error.problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_shown_are_yaml_and_whole_machines_are_accepted(page: Path, tmp_path: Path) -> None:
    for language, block in shown(page):
        if language != "yaml":
            continue
        for part in yaml.safe_load_all(block):
            if isinstance(part, dict) and part.get("spec") == "flatmachine" and "data" in part:
                assert [p for p in problems_of(part, tmp_path) if p.code != "missing-file"] == []


def test_files_that_the_architecture_names_are_there() -> None:
    told = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(told) > 30
    there = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "flat").rglob("*")
        if "__pycache__" not in path.parts
    ]
    missing = [
        name
        for name in told
        if not any(f"/{one}".endswith(f"/{name.rstrip('/')}") for one in there)
        and not (ROOT / name).exists()
        and not name.endswith("/x.py")  # what a reader is to write
    ]
    assert missing == []
