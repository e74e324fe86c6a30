"""Templates: how a value of a file refers to the data of a run.

A template is compiled from configuration text, once, and never from data: what a template renders to is a
value, and a value is never rendered again. There are three kinds, told apart by the text alone:

- a bare path (`context.user.name`) gives the value that stands there, whatever its type, or None;
- text without `{{` and `{%` is itself;
- anything else is Jinja and gives text, except that with `native=True` a text that is exactly one
  `{{ expression }}` gives the expression's own value.

Jinja is imported when the first template that needs it is compiled; `flat.core.sandbox` holds all that knows
it. `CompiledMapping` and `CompiledList` render structures: constants are laid out in advance, and only the
parts that are templates run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, overload

from flat.core.limits import DEFAULT_LIMITS, Limits
from flat.core.plain_template import compile_plain, plain_names
from flat.core.values import Reader, Scope, path_reader
from flat.errors import ExpressionError, Location, did_you_mean

ROOTS = ("context", "input", "output")
"""What a bare path may begin with, besides the roots a template is given."""
NULL_HINT = "in a template, null is written none"


class Template:
    """An immutable template, equal to others of the same text and kind; compiled when first needed.

    >>> Template("context.user.name").render({"context": {"user": {"name": "Ann"}}})
    'Ann'
    """

    __slots__ = ("_render", "lenient", "limits", "location", "native", "roots", "source", "verbatim")
    source: str
    location: Location | None
    native: bool
    roots: tuple[str, ...]
    lenient: bool
    verbatim: bool
    limits: Limits
    _render: Reader | None

    def __init__(
        self,
        source: str,
        location: Location | None = None,
        native: bool = False,
        *,
        roots: Collection[str] = (),
        lenient: bool = False,
        verbatim: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`roots` may start bare paths too; `lenient` renders what is undefined as nothing; `verbatim` text
        has no bare paths."""
        put = object.__setattr__
        put(self, "source", source)
        put(self, "location", location)
        put(self, "native", native)
        put(self, "roots", tuple(roots))
        put(self, "lenient", lenient)
        put(self, "verbatim", verbatim)
        put(self, "limits", limits)
        put(self, "_render", None)

    def render(self, scope: Scope) -> Any:
        """The value for this scope. Raises `ExpressionError`, and nothing else."""
        return (self._render or self._compiled())(scope)

    def check(self, roots: Collection[str] | None = None) -> None:
        """Compile now. With `roots`, also refuse names neither among them nor set by the template."""
        self._compiled()
        if roots is not None and self.is_jinja:
            self._check_names(roots)

    def _check_names(self, roots: Collection[str]) -> None:
        used = plain_names(self.source)
        if used is None:
            from flat.core.sandbox import names_used

            used = names_used(self)
        for name, offset in sorted(used.items(), key=lambda item: item[1]):
            if name not in roots:
                hint = NULL_HINT if name in ("null", "nil") else did_you_mean(name, roots)
                raise self.error(f"`{name}` is not defined", offset, hint, name)

    @property
    def is_jinja(self) -> bool:
        text = self.source
        return "{{" in text or "{%" in text or (self.verbatim and "{#" in text)

    @property
    def is_constant(self) -> bool:
        """True when the template is plain text and renders to itself."""
        return not self.is_jinja and self.path() is None

    def path(self) -> tuple[str, ...] | None:
        """The parts of the bare path that this template is, or None."""
        if self.verbatim or not (found := _bare_path(self.roots).fullmatch(self.source.strip())):
            return None
        return tuple(found.group().split("."))

    def _compiled(self) -> Reader:
        if self._render is None:
            object.__setattr__(self, "_render", self._compile())
        assert self._render is not None
        return self._render

    def _compile(self) -> Reader:
        if self.is_jinja:
            if plain := compile_plain(self):
                return plain
            from flat.core.sandbox import compile_jinja

            return compile_jinja(self)
        if path := self.path():
            return path_reader(path[0], path[1:])
        text = self.source
        if self.verbatim and text.endswith("\n"):
            text = text[:-1]
        return lambda scope: text

    def at(self, location: Location) -> Template:
        """The same template, standing somewhere else."""
        return _restore(
            self.source, location, self.native, self.roots, self.lenient, self.verbatim, self.limits
        )

    def templates(self) -> tuple[Template, ...]:
        return () if self.is_constant else (self,)

    def places(self) -> Iterator[tuple[tuple[Any, ...], Location | None]]:
        return iter((((), self.location),))

    def error(
        self, message: str, offset: int | None = None, hint: str = "", path: str = ""
    ) -> ExpressionError:
        """An error about this template, at a place in its text."""
        place = self.location and self.location.moved_into(self.source, offset, max(1, len(path)))
        return ExpressionError(
            message, source=self.source, offset=offset, location=place, hint=hint, path=path
        )

    def _identity(self) -> tuple[Any, ...]:
        return (self.source, self.native, self.roots, self.lenient, self.verbatim)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a template is immutable; cannot set {name}")

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Template) else NotImplemented

    def __hash__(self) -> int:
        return hash((Template, self.source, self.native))

    def __repr__(self) -> str:
        return f"Template({self.source!r}{', native=True' if self.native else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = (
            self.source,
            self.location,
            self.native,
            self.roots,
            self.lenient,
            self.verbatim,
            self.limits,
        )
        return (_restore, state)


def _restore(
    source: str,
    location: Location | None,
    native: bool,
    roots: tuple[str, ...],
    lenient: bool,
    verbatim: bool,
    limits: Limits,
) -> Template:
    return Template(source, location, native, roots=roots, lenient=lenient, verbatim=verbatim, limits=limits)


@lru_cache(maxsize=64)
def _bare_path(roots: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(root) for root in dict.fromkeys((*ROOTS, *roots)))
    return re.compile(rf"(?:{names})(?:\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)


def compile_text(
    source: str, location: Location | None = None, *, lenient: bool = False, limits: Limits = DEFAULT_LIMITS
) -> Template:
    """A template for prompt text: `context.x` in it is just words, and one trailing newline is dropped."""
    return Template(source, location, lenient=lenient, verbatim=True, limits=limits)


Locate: TypeAlias = Callable[..., Location | None]
"""Where the string stands that is reached by these keys and indexes: `locate("user", "name")`."""


class Constant:
    """A value without templates. Each `render` gives fresh containers, so that nobody shares the file's
    defaults."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def render(self, scope: Scope) -> Any:
        return _fresh(self.value)

    def templates(self) -> tuple[Template, ...]:
        return ()

    def places(self) -> Iterator[tuple[tuple[Any, ...], Location | None]]:
        return iter(())

    def check(self, roots: Collection[str] | None = None) -> None:
        return None

    def __eq__(self, other: object) -> bool:
        return bool(self.value == other.value) if isinstance(other, Constant) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self.value))

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"


class _Container:
    """What compiled mappings and lists share. Equal when made from equal values in the same way."""

    __slots__ = ("_still", "_turning", "native", "parts", "value")

    def __init__(self, value: Any, parts: tuple[tuple[Any, Value], ...], native: bool) -> None:
        self.value, self.parts, self.native = value, parts, native
        self._still = [(key, part.value if isinstance(part, Constant) else None) for key, part in parts]
        self._turning = tuple(
            (key, part)
            for key, part in parts
            if not isinstance(part, Constant) or isinstance(part.value, dict | list)
        )

    def templates(self) -> tuple[Template, ...]:
        """Every template inside that is more than plain text, in file order."""
        return tuple(t for _, part in self.parts for t in part.templates())

    def places(self) -> Iterator[tuple[tuple[Any, ...], Location | None]]:
        """The keys that lead to each template, and its place in the file."""
        for key, part in self.parts:
            for keys, place in part.places():
                yield (key, *keys), place

    def check(self, roots: Collection[str] | None = None) -> None:
        """Compile all templates now; see `Template.check`."""
        for template in self.templates():
            template.check(roots)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or not isinstance(other, _Container):
            return NotImplemented
        return bool(self.value == other.value) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(tuple(key for key, _ in self.parts))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.value, self.parts, self.native))


class CompiledMapping(_Container):
    """A mapping whose values may be templates. Dict values are rendered at any depth; keys never."""

    __slots__ = ("_base",)

    def __init__(
        self, value: Mapping[str, Any], parts: tuple[tuple[Any, Value], ...], native: bool = False
    ) -> None:
        super().__init__(value, parts, native)
        self._base = dict(self._still)

    def render(self, scope: Scope) -> dict[str, Any]:
        """A new dict, which shares no container with the file's own values."""
        result = self._base.copy()
        for key, part in self._turning:
            result[key] = part.render(scope)
        return result


class CompiledList(_Container):
    """A list of which the strings directly in it are rendered; what else it holds is copied."""

    __slots__ = ("_base",)

    def __init__(self, value: list[Any], parts: tuple[tuple[Any, Value], ...], native: bool = False) -> None:
        super().__init__(value, parts, native)
        self._base = [value for _, value in self._still]

    def render(self, scope: Scope) -> list[Any]:
        """A new list."""
        result = self._base.copy()
        for index, part in self._turning:
            result[index] = part.render(scope)
        return result


Value: TypeAlias = Template | Constant | CompiledMapping | CompiledList


@overload
def compile_value(
    value: Mapping[str, Any],
    location: Location | Locate | None = None,
    *,
    native: bool = False,
    roots: Collection[str] = (),
    lenient: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> CompiledMapping: ...
@overload
def compile_value(
    value: Any,
    location: Location | Locate | None = None,
    *,
    native: bool = False,
    roots: Collection[str] = (),
    lenient: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Value: ...
def compile_value(
    value: Any,
    location: Location | Locate | None = None,
    *,
    native: bool = False,
    roots: Collection[str] = (),
    lenient: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Value:
    """A value of a file, ready to be rendered often.

    `location` is a place, or a function that gives the place of the string at the end of some keys.
    """
    roots = tuple(roots)

    def compiled(value: Any, keys: tuple[str | int, ...]) -> Value:
        if isinstance(value, str):
            template = Template(value, None, native, roots=roots, lenient=lenient, limits=limits)
            if keys and template.is_constant:
                return Constant(value)
            place = location(*keys) if callable(location) else location
            return template.at(place) if place else template
        if isinstance(value, Mapping):
            return CompiledMapping(
                value, tuple((k, compiled(v, (*keys, k))) for k, v in value.items()), native
            )
        if isinstance(value, list):
            parts = (
                compiled(v, (*keys, n)) if isinstance(v, str) else Constant(v) for n, v in enumerate(value)
            )
            return CompiledList(value, tuple(enumerate(parts)), native)
        return Constant(value)

    return compiled(value, ())


def _fresh(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fresh(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fresh(item) for item in value]
    return value
