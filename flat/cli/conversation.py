"""A conversation with a tree in the terminal: what is typed, as what is said to the tree.

A line that begins with `/` is a command of the node that the user talks to, or of its packs: it runs with no model
involved. `/help` lists them.

    /clear                      a command without input
    /book Oslo                  the one field of its input, or the one that is required
    /book city=Oslo nights=2    fields, as after --input; or all of them as {"city": "Oslo"}
    //etc is a folder           a message that begins with /
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from flat.cli.ending import UsageError, complain, say
from flat.cli.inputs import read_inputs, read_json
from flat.cli.running import quiet_stdout
from flat.cli.show import Show
from flat.cli.stores import is_missing
from flat.cli.text import one_line
from flat.core.op import UNSET
from flat.errors import FlatError
from flat.runtime import Machine, Runtime
from flat.tree.commanding import get_available_commands
from flat.tree.commands import CommandInfo
from flat.tree.instance import Instance
from flat.tree.messages import command_item

PROMPT = "you> "
HELP = "help"
SLASH = "/"


@dataclass
class Conversation:
    """The user's side of a session."""

    machine: Machine
    url: str
    execution_id: str
    show: Show
    beginning: Mapping[str, Any] = field(default_factory=dict)
    """The input of a session that is not there yet."""
    tree: Mapping[str, Any] | None = None
    """The tree as the last turn left it."""

    def next(self) -> dict[str, Any] | None:
        """What is said next: a message, or the invocation of a command. None when nothing more is said."""
        while (text := asked(self.show)) is not None:
            if not text.startswith(SLASH):
                return {"message": text}
            if text.startswith(SLASH + SLASH):
                return {"message": text.removeprefix(SLASH)}
            try:
                invocation = self._invocation(text.removeprefix(SLASH))
            except FlatError as error:
                complain(f"error: {error}")
                continue
            if invocation is not None:
                return {"messages": [invocation]}
        return None

    def _invocation(self, text: str) -> Mapping[str, Any] | None:
        """The command that is meant, or None when it was a request for help, which is given."""
        name, _, rest = text.partition(" ")
        commands = get_available_commands(self._root())
        found = next((one for one in commands if one.name == name), None)
        if found is not None:
            return command_item(name, input_of(found, rest.strip()))
        if name != HELP:
            raise UsageError(
                "\n".join([f"there is no command /{one_line(name, 60)}; there are:", *help_lines(commands)])
            )
        with quiet_stdout(self.show):
            for line in help_lines(commands):
                say(line)
        return None

    def _root(self) -> Instance[Any]:
        binding = self.machine.tree
        if self.tree is None and not is_missing(self.url):
            self.tree = anyio.run(self._stored)
        if self.tree is not None:
            root: Instance[Any] = binding.tree(self.tree)
            return root
        op: Any = self.machine.program.nodes[self.machine.program.initial].ops[0]
        named = self.beginning.get("node") or op.node
        state = self.beginning.get("state")
        node = binding.charter.node(named or next(iter(binding.charter.nodes), ""))
        return Instance(node, UNSET if state is None else state, id="root")

    async def _stored(self) -> Mapping[str, Any] | None:
        async with Runtime(self.url) as runtime:
            if await runtime.opened().get(self.execution_id) is None:
                return None
            snapshot = await runtime.inspect(self.execution_id)
            found: Mapping[str, Any] | None = snapshot.root.context.get("tree")
            return found


def asked(show: Show) -> str | None:
    """A line from the terminal; None when there is none."""
    if not sys.stdin.isatty():
        return None
    try:
        with quiet_stdout(show):
            return input(PROMPT).strip() or None
    except EOFError:
        return None


def input_of(command: CommandInfo, text: str) -> Any:
    """The input of a command from what was typed behind its name."""
    fields: Mapping[str, Any] = command.input_schema.get("properties") or {}
    if not text:
        return {}
    if text.startswith("{"):
        return read_json(text, f"the input of /{command.name}")
    words = [_typed(word, fields) for word in _words(text)]
    if words and all(word is not None for word in words):
        return read_inputs([word for word in words if word is not None])
    required: Sequence[str] = command.input_schema.get("required") or ()
    for alone in (tuple(fields), required):
        if len(alone) == 1:
            what = f'"{alone[0]}" of /{command.name}'
            return {alone[0]: text if _is_text(fields[alone[0]]) else read_json(text, what)}
    raise UsageError(f"/{command.name} is not understood; type {usage(command)}")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a lone apostrophe, for example: then it is one text
        return []


def _typed(word: str, fields: Mapping[str, Any]) -> str | None:
    """A word that sets a field, in the form of `--input`; None if it is no such word."""
    key, equals, value = word.partition("=")
    name = key.removesuffix(":")
    if not equals or (fields and name not in fields):
        return None
    return word if name != key or _is_text(fields.get(name) or {}) else f"{name}:={value}"


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a field may hold a text, as far as its schema says."""
    return schema.get("type", "string") == "string" and "$ref" not in schema


def usage(command: CommandInfo) -> str:
    """How a command is typed: `/book city=… [nights=…]`."""
    required = command.input_schema.get("required") or ()
    fields = command.input_schema.get("properties") or {}
    shown = [f"{name}=…" if name in required else f"[{name}=…]" for name in fields]
    return " ".join([f"/{command.name}", *shown])


def help_lines(commands: Sequence[CommandInfo]) -> list[str]:
    """What can be typed."""
    typed = [(usage(one), one_line(one.description)) for one in commands]
    typed += [] if HELP in _names(commands) else [(f"/{HELP}", "this list")]
    width = max(len(how) for how, _ in typed)
    lines = [f"  {one_line(how):<{width}}  {what}".rstrip() for how, what in typed]
    return [*lines, "  anything else is said to the tree; // for a text that begins with /; nothing: the end"]


def _names(commands: Sequence[CommandInfo]) -> list[str]:
    return [one.name for one in commands]
