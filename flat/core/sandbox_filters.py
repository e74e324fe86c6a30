"""The filters, tests and methods that templates may use, each with its price.

A filter is Jinja's own wherever its cost follows from the sizes of what goes in; those that can blow up, or
that would hand out markup objects or random choices, are ours or are left out. Generators become lists here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import pass_context
from jinja2.filters import FILTERS as STOCK
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, LoopContext
from jinja2.tests import TESTS as STOCK_TESTS
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import escape

from flat.core.budget import GRAIN, Budget, as_json
from flat.core.operators import Refusal, describe
from flat.core.sandbox_binops import add, format_text, refuse_undefined
from flat.core.sandbox_rewrite import BUILT, CALL, JOIN, SEEN, SLICE, TICK
from flat.errors import did_you_mean

Function = Callable[..., Any]

_PRICES = {
    "abs": 1,
    "batch": 8,
    "capitalize": 1,
    "center": 1,
    "count": 0,
    "d": 0,
    "default": 0,
    "dictsort": 16,
    "filesizeformat": 1,
    "first": 0,
    "float": 1,
    "groupby": 32,
    "int": 1,
    "items": 1,
    "last": 0,
    "length": 0,
    "list": 1,
    "lower": 1,
    "map": 32,
    "max": 8,
    "min": 8,
    "reject": 32,
    "rejectattr": 32,
    "reverse": 1,
    "round": 1,
    "select": 32,
    "selectattr": 32,
    "slice": 8,
    "sort": 32,
    "trim": 1,
    "truncate": 1,
    "unique": 16,
    "upper": 1,
    "urlencode": 8,
    "wordwrap": GRAIN,
}
"""Jinja's own filters: for so many 64ths of a step they look at one character or element."""

_OF_TEXT = frozenset(("capitalize", "center", "lower", "trim", "truncate", "upper", "urlencode", "wordwrap"))
_OF_LISTS = frozenset(
    ("batch", "groupby", "list", "map", "reject", "select", "slice", "sort", "unique", "max", "min")
) | {"rejectattr", "selectattr"}
_SIZED = frozenset(("batch", "slice", "center", "round"))

_TEXT_METHODS = frozenset(
    (
        "capitalize",
        "casefold",
        "center",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isdecimal",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "zfill",
    )
)
_PADDING = frozenset(("center", "ljust", "rjust", "zfill"))
_LIST_METHODS = frozenset(("index", "count"))
_MAPPING_METHODS = frozenset(("get", "items", "keys", "values"))
_LOOP_METHODS = frozenset(("cycle", "changed"))


def paid(budget: Budget, result: Any) -> Any:
    """A result that has been paid for; generators are drawn into lists."""
    if isinstance(result, str):
        budget.produce(len(result))
        return str(result)
    if isinstance(result, list | tuple | dict):
        budget.elements(len(result))
        return result
    if isinstance(result, Iterator):
        drawn = []
        for item in result:
            budget.elements(1 + (len(item) if isinstance(item, list) else 0))
            drawn.append(item)
        return drawn
    return result


def _stock(name: str, price: int) -> Function:
    """One of Jinja's filters, behind the till."""
    function = STOCK[name]
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def run(context: Context, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        if name not in ("d", "default"):
            refuse_undefined(value)
        if name in _OF_TEXT and not isinstance(value, str):
            budget.weigh(value)
        if name in _OF_LISTS and isinstance(value, str):
            budget.elements(len(value))
        for part in (value, *args, *kwargs.values()):
            budget.look(part, price)
            if name in _SIZED and part is not value:
                budget.width(part)
        if name == "map" and args and " " in str(args[0]):
            raise Refusal(f"there is no filter `{args[0]}`")
        if name == "wordwrap":
            _pay_for_wrapping(budget, value, *args, **kwargs)
        lead = {
            "context": (context,),
            "environment": (context.environment,),
            "eval_context": (context.eval_ctx,),
        }
        return paid(budget, function(*lead.get(passed, ()), value, *args, **kwargs))

    return run


def _pay_for_wrapping(budget: Budget, value: Any, width: int = 79, *args: Any, **kwargs: Any) -> None:
    """What `textwrap` does to a line grows with the square of its length."""
    text, width = str(value), max(1, int(width))
    longest = max((len(line.group()) for line in re.finditer("[^\n]+", text)), default=0)
    budget.work(longest * longest // width // 1024)
    ends = kwargs.get("wrapstring", args[1] if len(args) > 1 else None) or "\n"
    budget.produce((2 * len(text) // width + text.count("\n") + 1) * len(ends))


def _joined(budget: Budget, separator: str, items: Any) -> str:
    """`separator.join` of the items' texts, paid for before it is made."""
    texts = []
    for item in items:
        if not isinstance(item, str):
            refuse_undefined(item)
            budget.weigh(item)
        text = str(item)
        budget.produce(len(text) + len(separator))
        budget.work(1)
        texts.append(text)
    return separator.join(texts)


def _replaced(budget: Budget, text: str, old: str, new: str, count: int | None = None) -> str:
    times = text.count(old)
    if count is not None and count >= 0:
        times = min(times, count)
    budget.look(text, 2)
    budget.produce(len(text) + times * max(0, len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


@pass_context
def _join(context: Context, value: Any, /, d: str = "", attribute: Any = None) -> str:
    items = map(make_attrgetter(context.environment, attribute), value) if attribute is not None else value
    return _joined(budget_of(context), str(d), items)


@pass_context
def _replace(context: Context, value: Any, old: str, new: str, count: int | None = None) -> str:
    return _replaced(budget_of(context), _as_text(context, value), str(old), str(new), count)


@pass_context
def _indent(
    context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    budget, text = budget_of(context), _as_text(context, value)
    budget.width(width)
    room = width if isinstance(width, int) else len(str(width))
    budget.produce(len(text) + (text.count("\n") + 1) * max(0, room))
    budget.look(text, 4)
    return str(STOCK["indent"](text, width, first, blank))


@pass_context
def _title(context: Context, value: Any) -> str:
    budget, text = budget_of(context), _as_text(context, value)
    budget.elements(2 * sum(map(text.count, " -\t\n({[<")))
    return str(paid(budget, STOCK["title"](text)))


@pass_context
def _wordcount(context: Context, value: Any) -> int:
    text = _as_text(context, value)
    budget_of(context).look(text, 8)
    return sum(1 for _ in re.finditer(r"\w+", text))


@pass_context
def _tojson(context: Context, value: Any, indent: int | None = None) -> str:
    budget = budget_of(context)
    size = budget.weigh(value)
    if indent is not None:
        budget.width(indent)
        budget.produce(size * abs(int(indent)))
    text = str(htmlsafe_json_dumps(value, _dumps, indent=indent, sort_keys=True))
    budget.produce(len(text))
    return text


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, default=_json_or_undefined, **options)


def _json_or_undefined(value: Any) -> Any:
    refuse_undefined(value)
    return as_json(value)


@pass_context
def _fromjson(context: Context, value: Any) -> Any:
    text = _as_text(context, value)
    budget_of(context).elements(len(text) // 8)
    try:
        return json.loads(text)
    except ValueError as error:
        shown = text if len(text) <= 40 else text[:40] + "…"
        raise Refusal(f"`fromjson` was given what is not JSON: {shown!r}", str(error)) from None


@pass_context
def _sum(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    items = map(make_attrgetter(context.environment, attribute), value) if attribute is not None else value
    budget = budget_of(context)
    for item in items:
        budget.work(2)
        start = add(budget, start, item)
    return start


@pass_context
def _format(context: Context, value: Any, /, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise Refusal("`format` takes positions or names, not both")
    return format_text(budget_of(context), _as_text(context, value), kwargs or args)


@pass_context
def _escape(context: Context, value: Any) -> str:
    return str(paid(budget_of(context), str(escape(_as_text(context, value)))))


@pass_context
def _string(context: Context, value: Any) -> str:
    return _as_text(context, value)


def _as_text(context: Context, value: Any) -> str:
    """`str(value)`, after making sure that it is small enough to have one."""
    refuse_undefined(value)
    budget = budget_of(context)
    if not isinstance(value, str):
        budget.weigh(value)
    budget.look(value)
    return str(value)


@pass_context
def _call(context: Context, value: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """`value.name(…)` in a template."""
    budget = budget_of(context)
    for part in (value, *args):
        refuse_undefined(part)
        budget.compare(part)
    if isinstance(value, LoopContext):
        _require_method(name, _LOOP_METHODS, "`loop`")
        return getattr(value, name)(*args, **kwargs)
    if isinstance(value, Mapping):
        _require_method(name, _MAPPING_METHODS, "a mapping")
        return _call_on_mapping(budget, value, name, args, kwargs)
    if isinstance(value, str):
        _require_method(name, _TEXT_METHODS, "text")
        return _call_on_text(budget, str(value), name, args, kwargs)
    if isinstance(value, list | tuple):
        _require_method(name, _LIST_METHODS, "a list")
        return getattr(value, name)(*args, **kwargs)
    raise Refusal(f"there is no method `{name}`, because the value before it is {describe(value)}")


def _require_method(name: str, known: frozenset[str], owner: str) -> None:
    if name not in known:
        raise Refusal(f"{owner} has no method `{name}` in a template", did_you_mean(name, known))


def _call_on_mapping(
    budget: Budget, value: Mapping[Any, Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if name == "get":
        return value.get(*args, **kwargs)
    if args or kwargs:
        raise Refusal(f"`{name}()` takes no arguments")
    budget.elements(len(value))
    return list({"items": value.items, "keys": value.keys, "values": value.values}[name]())


def _call_on_text(budget: Budget, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "join" and len(args) == 1:
        return _joined(budget, text, args[0])
    if name == "replace" and len(args) in (2, 3) and isinstance(args[0], str) and isinstance(args[1], str):
        return _replaced(budget, text, *args)
    if name in _PADDING:
        for part in args:
            budget.width(part)
    if name in ("split", "rsplit"):
        separator = args[0] if args else kwargs.get("sep")
        parts = text.count(separator) if isinstance(separator, str) and separator else len(text) // 2
        budget.elements(parts + 1)
    elif name == "splitlines":
        budget.elements(len(text) // 2 + 1 if text.count("\n") * 4 > len(text) else text.count("\n") * 2 + 1)
    return paid(budget, getattr(text, name)(*args, **kwargs))


@pass_context
def _slice(context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
    refuse_undefined(value)
    if not isinstance(value, str | list | tuple | range):
        raise Refusal(f"only text and lists can be sliced, and this is {describe(value)}")
    taken = range(*slice(start, stop, step).indices(len(value)))
    budget = budget_of(context)
    if isinstance(value, str):
        budget.produce(len(taken))
        budget.look(value)
    else:
        budget.elements(len(taken))
    return value[start:stop:step]


@pass_context
def _concatenate(context: Context, parts: list[Any]) -> str:
    budget = budget_of(context)
    return _joined(budget, "", parts)


@pass_context
def _built(context: Context, value: Any) -> Any:
    budget = budget_of(context)
    size = budget.weigh(value)
    budget.elements(len(value))
    budget.work(size // GRAIN)
    return value


@pass_context
def _seen(context: Context, value: Any) -> Any:
    budget_of(context).compare(value)
    return value


@pass_context
def _tick(context: Context, price: Any) -> bool:
    budget_of(context).work(price)
    return True


def budget_of(context: Context) -> Budget:
    budget = context.budget  # type: ignore[attr-defined]
    assert isinstance(budget, Budget)
    return budget


def _test(name: str) -> Function:
    function: Any = STOCK_TESTS[name]

    @pass_context
    def run(context: Context, value: Any, /, *args: Any) -> Any:
        for part in (value, *args):
            budget_of(context).compare(part)
        return function(value, *args)

    return run


FILTERS: dict[str, Function] = {
    **{name: _stock(name, price) for name, price in _PRICES.items()},
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "tojson": _tojson,
    "fromjson": _fromjson,
    "sum": _sum,
    "format": _format,
    "e": _escape,
    "escape": _escape,
    "forceescape": _escape,
    "safe": _string,
    "string": _string,
    "title": _title,
    "wordcount": _wordcount,
}
"""What a template may write after `|`."""

INNER_FILTERS: dict[str, Function] = {
    CALL: _call,
    SLICE: _slice,
    JOIN: _concatenate,
    BUILT: _built,
    SEEN: _seen,
    TICK: _tick,
}
"""What the rewriting puts into a template; a template cannot name these."""

TESTS: dict[str, Function] = {
    name: _test(name) for name in STOCK_TESTS if name not in ("callable", "escaped", "filter", "test")
}
"""What a template may write after `is`."""
