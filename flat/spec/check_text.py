"""What can be known about the texts of a machine: templates, conditions, secrets written out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flat.core.condition import Condition
from flat.core.template import Template, compile_text
from flat.errors import ExpressionError, Problem, nearest
from flat.spec.document import Step, mapping
from flat.spec.sources import AgentSource, CatalogueSource, Part

_INPUT = re.compile(r"\binput\.([A-Za-z_]\w*)")
_CONTEXT = re.compile(r"\bcontext\.([A-Za-z_]\w*)")
_TEXT = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
_CODE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_BARE = re.compile(r"(?:context|input|output)(?:\.[A-Za-z_]\w*)*")
_PATH_LIKE = re.compile(r"([A-Za-z_]\w*)(?:\.\w+|\[[^\]\s]*\])+")
_ROOTS = ("context", "input", "output")
_SECRET_KEY = re.compile(r"(?:^|_)(?:api_?key|token|secret|password)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(?:sk|pk|ghp|xoxb|AKIA)[-_A-Z0-9a-z]{12,}")
_REFERENCE = re.compile(r"\$\{|\{\{|^env:|^secret\(")

_GIVEN = (
    *("last_error", "last_error_type", "machine", "_mdap_metrics"),
    *("_tool_loop_chain", "_tool_loop_content", "_tool_loop_cost", "_tool_loop_stop", "_tool_loop_turns"),
    "_tool_calls_count",
)
"""Context keys that the engine sets."""

_WORDS = frozenset(
    ("and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None")
)
"""What a template cannot have as a name."""

_STATE = frozenset({"context", "input"})
_SCOPES: tuple[tuple[str, frozenset[str]], ...] = (
    ("input", _STATE),
    ("launch_input", _STATE),
    ("wait_for", _STATE),
    ("foreach", _STATE),
    ("session_id", _STATE),
    ("tool_loop", _STATE),
    ("output", frozenset({"context"})),
)
"""Fields of a state that are rendered, and what their templates see."""

_PROMPT = frozenset({"input", "model", "tools", "tools_prompt"})
_PROMPT_SCOPES = {
    "system": _PROMPT,
    "user": _PROMPT,
    "instruction_suffix": _PROMPT,
    "post_history_instructions": _PROMPT | {"context"},
}


class TextChecks:
    """One pass over all texts of one machine."""

    def __init__(
        self,
        data: Part,
        states: Mapping[str, Mapping[str, Any]],
        agents: Mapping[str, AgentSource],
        catalogue: CatalogueSource | None,
    ) -> None:
        self.data = data
        self.states = states
        self.agents = agents
        self.catalogue = catalogue
        self.problems: list[Problem] = []
        self.condition = self._engine()
        self.native = bool(mapping(data.value.get("settings")).get("native_types"))
        self.items = {str(s.get("as") or "item") for s in states.values() if s.get("foreach")}
        """What items are called in any of the states."""
        self.declared = {*_GIVEN, *mapping(data.value.get("context"))}
        for state in states.values():
            self.declared.update(mapping(state.get("output_to_context")))

    def run(self) -> list[Problem]:
        self._templates(self.data, ("context",), self.data.value.get("context"), frozenset({"input"}))
        for name, state in self.states.items():
            self._state(name, state)
        for agent in self.agents.values():
            self._prompt(agent)
        self._secrets()
        return self.problems

    def _engine(self) -> type[Condition] | None:
        """The machine's language of conditions. None, and one problem at the choice, when it is not there."""
        engine = self.data.value.get("expression_engine")
        if engine != "cel":
            return Condition
        from flat.core import cel

        if not cel.is_installed():
            place = self.data.locate("expression_engine")
            self.problems.append(Problem("missing-package", cel.MISSING, place, cel.INSTALL))
            return None
        return cel.CelCondition

    def _state(self, name: str, state: Mapping[str, Any]) -> None:
        at = ("states", name)
        item = "item" if state.get("as") is None else str(state["as"])
        for field, scope in _SCOPES:
            if field == "input" and state.get("foreach"):
                scope = scope | {item}
            if field in state:
                self._templates(self.data, (*at, field), state[field], scope, in_state=True)
        scope = _STATE | {item} if state.get("foreach") else _STATE
        for index, entry in enumerate(_list(state.get("machine"))):
            own = mapping(mapping(entry).get("input"))
            self._templates(self.data, (*at, "machine", index, "input"), own, scope, in_state=True)
        self._templates(self.data, (*at, "key"), state.get("key"), _STATE | {item}, in_state=True)
        if state.get("foreach"):
            self._item(at, item, state.get("key"))
        for key, value in mapping(state.get("output_to_context")).items():
            if isinstance(value, str):
                scope = _STATE | {"output"}
                self._template(self.data, (*at, "output_to_context", key), value, scope, in_state=True)
        for index, transition in enumerate(_list(state.get("transitions"))):
            condition = mapping(transition).get("condition")
            if isinstance(condition, str):
                self._condition((*at, "transitions", index, "condition"), condition)

    def _item(self, at: tuple[Step, ...], item: str, key: Any) -> None:
        """Whether templates can name an item, and whether keys tell items apart."""
        if not item.isidentifier() or item in _WORDS:
            said = f'"as" should be a name that a template can use, not "{item}"'
            self.problems.append(
                Problem("item-name", said, self.data.locate(*at, "as"), "letters, digits and _: doc, row_2")
            )
        elif isinstance(key, str) and item not in key and key.strip():
            said = f"all items have the same key: nothing in it is of {item}"
            self._doubt((*at, "key"), said, f'write for example "{{{{ {item}.id }}}}"')

    def _templates(
        self, part: Part, path: tuple[Step, ...], value: Any, scope: frozenset[str], *, in_state: bool = False
    ) -> None:
        """Check what is rendered of a value: texts in mappings at any depth, and directly in lists."""
        if isinstance(value, str):
            self._template(part, path, value, scope, in_state=in_state)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._templates(part, (*path, key), item, scope, in_state=in_state)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, str):
                    self._template(part, (*path, index), item, scope, in_state=in_state)
                else:
                    self._unrendered(part, (*path, index), item)

    def _unrendered(self, part: Part, path: tuple[Step, ...], value: Any) -> None:
        """Warn of what looks like a template deep inside a list, where it stays the text that it is."""
        for inner in _texts(value):
            text = part.document.get((*part.path, *path, *inner))
            if _CODE.search(text):
                said = "a template in a mapping or a list that is in a list is not rendered"
                hint = "write the whole list as one template, with settings.native_types: true"
                place = part.locate(*path, *inner)
                self.problems.append(Problem("unrendered", said, place, hint, "warning"))

    def _template(
        self, part: Part, path: tuple[Step, ...], text: str, scope: frozenset[str], *, in_state: bool = False
    ) -> None:
        if "{" in text:
            template = compile_text(text) if part is not self.data else Template(text)
            code = "template"
            try:
                template.check()
                code = "undefined-name"
                template.check(scope)
            except ExpressionError as error:
                self._expression(code, part, path, error)
                return
        elif part is self.data:
            self._plain(path, text.strip(), scope)
        if in_state:
            self._declared(path, text)

    def _plain(self, path: tuple[Step, ...], text: str, scope: frozenset[str]) -> None:
        """Warn of a text without braces that looks like a path, and is none, or one that leads nowhere here."""
        root = text.partition(".")[0]
        if _BARE.fullmatch(text):
            if root not in scope:
                said = f"{text} is always null: {root} cannot be seen here"
                self._doubt(path, said, f"known: {', '.join(sorted(scope))}")
            return
        if text in self.items and not self.native and text in scope:
            self._doubt(path, f"{text} is plain text here", f'write "{{{{ {text} }}}}" for the item')
        elif (found := _PATH_LIKE.fullmatch(text)) and not (self.native and found[1] in self.items):
            if found[1] in scope:
                self._doubt(path, f"{text} is plain text here", f'write "{{{{ {text} }}}}"')
            elif (meant := nearest(found[1], _ROOTS)) in scope and self._leads(meant, text[len(found[1]) :]):
                said = f"{text} is plain text here"
                self._doubt(path, said, f'did you mean "{meant}{text[len(found[1]) :]}"?')

    def _leads(self, root: str, rest: str) -> bool:
        """Whether there is something behind `root` and the first step of `rest`; a file's name has its own."""
        return root == "output" or rest.removeprefix(".").partition(".")[0] in self.declared

    def _doubt(self, path: tuple[Step, ...], said: str, hint: str) -> None:
        place = self.data.locate(*path)
        if place is None:
            said = f"{'.'.join(map(str, ('data', *path)))}: {said}"
        self.problems.append(Problem("plain-text", said, place, hint, "warning"))

    def _condition(self, path: tuple[Step, ...], text: str) -> None:
        if not text.strip() or self.condition is None:
            return
        try:
            self.condition(text).check()
        except ExpressionError as error:
            self._expression("condition", self.data, path, error)
            return
        self._undeclared(path, text, _TEXT.sub(lambda found: " " * len(found.group()), text), _CONTEXT)

    def _expression(self, code: str, part: Part, path: tuple[Step, ...], error: ExpressionError) -> None:
        place = part.locate(*path) if error.offset is None else part.locate_in(*path, offset=error.offset)
        said = error.message
        if place is None:
            said = f"{'.'.join(map(str, (*part.path, *path)))}: {said}"
        self.problems.append(Problem(code, said, place, error.hint))

    def _declared(self, path: tuple[Step, ...], text: str) -> None:
        """Warn of names in `text` that nothing puts into the context."""
        if _BARE.fullmatch(text.strip()):
            code = text
        elif "{" in text:
            code = "".join(char if inside else " " for char, inside in zip(text, _inside(text), strict=True))
        else:
            return
        self._undeclared(path, text, code, _INPUT)
        self._undeclared(path, text, code, _CONTEXT)

    def _undeclared(self, path: tuple[Step, ...], text: str, code: str, pattern: re.Pattern[str]) -> None:
        for found in pattern.finditer(code):
            name = found[1]
            if name in self.declared:
                continue
            # Nobody means one of the engine's own names, with a line in front, by a name without.
            alike = [known for known in self.declared if known.startswith("_") == name.startswith("_")]
            meant = nearest(name, sorted(alike))
            if pattern is _INPUT:
                said = (
                    f"input.{name} is used in a state, where input is the context, which does not declare it"
                )
                hint = (
                    f'did you mean "{meant}"?'
                    if meant
                    else f'add {name}: "{{{{ input.{name} }}}}" to data.context'
                )
            elif meant:
                said, hint = f"nothing puts {name} into the context", f'did you mean "{meant}"?'
            else:
                continue
            place = self.data.locate_in(*path, offset=found.start())
            self.problems.append(
                Problem(
                    "undeclared", said, place and replace(place, width=len(found.group())), hint, "warning"
                )
            )

    def _prompt(self, agent: AgentSource) -> None:
        if agent.prompt is None:
            return
        for field, scope in _PROMPT_SCOPES.items():
            text = agent.prompt.value.get(field)
            if isinstance(text, str):
                self._template(agent.prompt, (field,), text, scope)

    def _secrets(self) -> None:
        places: list[tuple[Part, tuple[Step, ...], Any]] = [
            (self.data, (field,), self.data.value.get(field))
            for field in ("settings", "persistence", "agents")
        ]
        places += [(a.file, (), a.file.value) for a in self.agents.values() if a.file and not a.file.path]
        if self.catalogue is not None:
            places.append((self.catalogue.part, (), self.catalogue.part.value))
        for part, path, value in places:
            for found in _literal_secrets(value):
                place = part.locate(*path, *found)
                hidden = replace(place, text="") if place else None
                said = f"{found[-1]} is a secret written into a file"
                hint = f"name an environment variable instead: {found[-1]}: ${{env:NAME}}"
                self.problems.append(Problem("secret", said, hidden, hint, "warning"))


def _inside(text: str) -> list[bool]:
    """Which characters of a template stand inside `{{ }}` or `{% %}`, and in no text of those."""
    flags = [False] * len(text)
    for found in _CODE.finditer(text):
        flags[found.start() : found.end()] = [True] * len(found.group())
        for quoted in _TEXT.finditer(text, found.start(), found.end()):
            flags[quoted.start() : quoted.end()] = [False] * len(quoted.group())
    return flags


def _texts(value: Any, path: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Where there is text in a value."""
    if isinstance(value, str):
        yield path
        return
    entries: Iterable[tuple[Step, Any]] = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, item in entries:
        yield from _texts(item, (*path, key))


def _literal_secrets(value: Any, path: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    entries: Iterable[tuple[Step, Any]] = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, item in entries:
        here = (*path, key)
        if isinstance(item, str):
            named = isinstance(key, str) and _SECRET_KEY.search(key) is not None
            if item and (named or _SECRET_VALUE.fullmatch(item)) and not _REFERENCE.search(item):
                yield here
        else:
            yield from _literal_secrets(item, here)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
