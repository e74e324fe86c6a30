"""A typed client module, generated from the description of a charter: strong types without the server's code.

    commands.desk.clear({"keep": 2})   # {"type": "command", "name": "clear", "input": {"keep": 2}}

Each input becomes a `TypedDict`. What JSON Schema can say and Python's types cannot is `Any`. The module that is made
needs nothing but the standard library.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.tree.schema import top_level

HEAD = '''\
"""Commands of the charter {name!r}, for clients. Generated from its description; make it anew instead of editing it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

CHARTER_HASH = {hash!r}
"""Compare it with the hash of the description that the server has."""


class Invocation(TypedDict):
    """A command to send."""

    type: Literal["command"]
    name: str
    input: Any
    instanceId: NotRequired[str]
    clientId: NotRequired[str]
'''
_SIMPLE = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def client_stubs(document: Mapping[str, Any]) -> str:
    """The source of a typed client for a charter's description (`Charter.describe()`)."""
    module = _Module()
    scopes = []
    parts = [*document.get("nodes", {}).items(), *document.get("packs", {}).items()]
    for scope, part in parts:
        if part.get("commands"):
            scopes.append((_name(scope), module.scope(scope, part["commands"])))
    members = [f"    {name} = {cls}" for name, cls in scopes] or ["    pass"]
    head = HEAD.format(name=document.get("name", ""), hash=document.get("hash", ""))
    tail = ["class commands:  # noqa: N801", '    """Every command, by node or pack."""', "", *members]
    return "\n\n".join([head, *module.blocks, "\n".join(tail)]) + "\n"


@dataclass
class _Module:
    blocks: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def scope(self, scope: str, commands: Mapping[str, Any]) -> str:
        """One class with a function for each command of a node or pack; its name."""
        lines = []
        for name, command in commands.items():
            hint, optional = self.input(scope, name, command.get("inputSchema") or {})
            default = " | None = None" if optional else ""
            text = command.get("description") or f"The command {name}."
            lines += [
                "",
                "    @staticmethod",
                f"    def {_name(name)}(input: {hint}{default}) -> Invocation:",
                f"        {_docstring(text)}",
                f'        return {{"type": "command", "name": {name!r}, '
                f'"input": {"{} if input is None else input" if optional else "input"}}}',
            ]
        cls = self.free(_class_name(scope, "Commands"))
        self.blocks.append(
            "\n".join([f"class {cls}:", f"    {_docstring(f'Commands of {scope}.')}", *lines]) + "\n"
        )
        return cls

    def input(self, scope: str, name: str, schema: Mapping[str, Any]) -> tuple[str, bool]:
        top = top_level(dict(schema))
        hint = self.hint(top, _class_name(scope, name, "Input"), top.get("$defs", {}), {})
        return hint, top.get("type") == "object" and not top.get("required")

    def hint(self, schema: Any, name: str, defs: Mapping[str, Any], known: dict[str, str]) -> str:
        """The Python type of a schema; classes for objects are added to the module."""
        if not isinstance(schema, Mapping):
            return "Any"
        if isinstance(ref := schema.get("$ref"), str):
            return self.reference(ref, name, defs, known)
        if "const" in schema:
            return _literal([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return _literal(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if word in schema:
                options = [
                    self.hint(part, f"{name}{i}", defs, known) for i, part in enumerate(schema[word], 1)
                ]
                return " | ".join(dict.fromkeys(options))
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(self.hint({**schema, "type": one}, name, defs, known) for one in kind)
        if kind == "array":
            return f"list[{self.hint(schema.get('items'), f'{name}Item', defs, known)}]"
        if kind == "object" and schema.get("properties"):
            return self.record(schema, name, defs, known)
        if kind == "object":
            return f"dict[str, {self.hint(schema.get('additionalProperties'), f'{name}Value', defs, known)}]"
        return _SIMPLE.get(kind, "Any") if isinstance(kind, str) else "Any"

    def reference(self, ref: str, name: str, defs: Mapping[str, Any], known: dict[str, str]) -> str:
        key = ref.removeprefix("#/$defs/")
        target = defs.get(key)
        if not isinstance(target, Mapping):
            return "Any"
        if key not in known:
            if target.get("type") == "object" and target.get("properties"):
                known[key] = self.free(_class_name(name, key))
                self.record(target, known[key], defs, known, reserved=True)
            else:
                known[key] = "Any"  # in case it refers to itself
                known[key] = self.hint(target, f"{name}{key}", defs, known)
        return known[key]

    def record(
        self,
        schema: Mapping[str, Any],
        name: str,
        defs: Mapping[str, Any],
        known: dict[str, str],
        *,
        reserved: bool = False,
    ) -> str:
        cls = name if reserved else self.free(name)
        required = schema.get("required", [])
        entries = []
        for key, part in schema["properties"].items():
            hint = self.hint(part, f"{cls}{_camel(key)}", defs, known)
            entries.append(f"        {key!r}: {hint if key in required else f'NotRequired[{hint}]'},")
        # The functional form takes any text as a key; quoted, because a class may refer to itself.
        quoted = [re.sub(r": (.*),$", lambda m: f": {m[1]!r},", entry) for entry in entries]
        self.blocks.append(
            "\n".join([f"{cls} = TypedDict(", f"    {cls!r},", "    {", *quoted, "    },", ")"])
        )
        return cls

    def free(self, name: str) -> str:
        """The name, or with a number when it is taken."""
        found, count = name, 2
        while found in self.taken:
            found, count = f"{name}{count}", count + 1
        self.taken.add(found)
        return found


def _literal(values: list[Any]) -> str:
    allowed = [value for value in values if value is None or isinstance(value, str | int | bool)]
    return f"Literal[{', '.join(map(repr, allowed))}]" if len(allowed) == len(values) else "Any"


def _docstring(text: str) -> str:
    line = " ".join(text.split())
    return repr(line) if '"' in line or "\\" in line else f'"""{line}"""'


def _class_name(*parts: str) -> str:
    return "".join(_camel(part) for part in parts) or "Input"


def _camel(text: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", text)
    made = "".join(word[0].upper() + word[1:] for word in words)
    return f"N{made}" if made[:1].isdigit() else made


def _name(text: str) -> str:
    """The text as a Python name."""
    made = re.sub(r"\W", "_", text)
    return f"{made}_" if keyword.iskeyword(made) else f"_{made}" if made[:1].isdigit() or not made else made
