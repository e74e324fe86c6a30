"""Jinja, without what makes Jinja dangerous: how template text becomes a function from scope to value.

Theory of operation. Jinja parses the text; `sandbox_rewrite` changes the syntax tree before Jinja compiles
it:

- Whatever calls, slices, joins or builds goes through one of our own filters. A method call `x.upper()`
  becomes a look-up in a fixed table, and attribute access only ever finds a mapping's key, so Python objects
  are out of reach, whatever they are.
- Loops and macros begin each turn by paying for the parts they contain, and text inside them is paid for when
  it is written. A rendering has a `Budget` of steps and characters, and ends when one is used up.
- Constants are not folded, so nothing is computed before there is a budget.

This module imports Jinja, and is imported by `flat.core.template` for the first template that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, Undefined, meta, nodes, pass_context
from jinja2.environment import Template as JinjaTemplate
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.filters import _GroupTuple
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from flat.core import sandbox_binops
from flat.core.budget import Budget
from flat.core.operators import Refusal, describe
from flat.core.plain_template import too_long, undefined
from flat.core.sandbox_errors import first_offset, line_of, locate_undefined
from flat.core.sandbox_filters import FILTERS, INNER_FILTERS, TESTS, budget_of
from flat.core.sandbox_rewrite import NotAllowed, rewrite
from flat.core.values import Reader, Scope
from flat.errors import ExpressionError

if TYPE_CHECKING:
    from flat.core.template import Template

_RESULT = "__flat_result"
_LOOP_FIELDS = frozenset(
    (
        "index",
        "index0",
        "first",
        "last",
        "length",
        "revindex",
        "revindex0",
        "previtem",
        "nextitem",
        "depth",
        "depth0",
    )
)


class _UndefinedUsed(UndefinedError):
    """Something undefined was used; keeps what was looked for, and in what."""

    def __init__(self, obj: Any, name: Any, message: str | None = None) -> None:
        super().__init__(message)
        self.obj, self.name = obj, name


def _used(obj: Any, name: Any) -> Any:
    """What Jinja calls, with a message, to make the exception for an undefined value."""
    return partial(_UndefinedUsed, obj, name)


class _Strict(StrictUndefined):
    __slots__ = ()

    def __init__(
        self, hint: str | None = None, obj: Any = missing, name: str | None = None, exc: Any = None
    ) -> None:
        super().__init__(hint, obj, name, exc or _used(obj, name))

    def __bool__(self) -> bool:  # type: ignore[override]
        """False, so that `{{ a or b }}` and `{% if a %}` ask whether it is there. Writing it is an error."""
        return False


class _Lenient(Undefined):
    __slots__ = ()

    def __init__(
        self, hint: str | None = None, obj: Any = missing, name: str | None = None, exc: Any = None
    ) -> None:
        super().__init__(hint, obj, name, exc or _used(obj, name))


class _Context(Context):
    """One rendering's variables, and its budget."""

    budget: Budget


class _Environment(ImmutableSandboxedEnvironment):
    """Reads keys and indexes only; every operator is ours; calls only what is known to be harmless."""

    context_class = _Context
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping):
            if attribute in obj:
                return obj[attribute]
        elif isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        elif (isinstance(obj, LoopContext) and attribute in _LOOP_FIELDS) or (
            isinstance(obj, _GroupTuple) and attribute in ("grouper", "list")
        ):
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        readable = isinstance(obj, Mapping) or (
            isinstance(obj, str | list | tuple | range) and isinstance(argument, int)
        )
        if readable:
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        return self.undefined(obj=obj, name=argument)

    def is_safe_callable(self, obj: Any) -> bool:
        return isinstance(obj, Macro | LoopContext | Undefined) or obj is _range or obj is _dict

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return sandbox_binops.apply(budget_of(context), operator, left, right)


@pass_context
def _range(context: Context, *bounds: int) -> range:
    numbers = range(*bounds)
    budget = budget_of(context)
    try:
        length = len(numbers)
    except OverflowError:
        length = budget.limits.range + 1
    if length > budget.limits.range:
        raise Refusal(f"the range holds more than {budget.limits.range:,} numbers")
    return numbers


@pass_context
def _dict(context: Context, *values: Any, **named: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = dict(*values, **named)
    budget_of(context).weigh(made)
    budget_of(context).elements(len(made))
    return made


@pass_context
def _write(context: Context, value: Any) -> str:
    """What Jinja calls on each value that is about to be written."""
    if isinstance(value, Undefined):
        return str(value)
    _require_data(value)
    if isinstance(value, list | tuple | Mapping):
        budget_of(context).weigh(value)
        _require_defined(value)
    return budget_of(context).text(value)


def _require_data(value: Any) -> None:
    if isinstance(value, Macro | LoopContext) or value is _range or value is _dict:
        raise Refusal("a function has no value by itself", "call it with parentheses")


def _require_defined(value: Any) -> None:
    """Undefined values may hide in a list or dict literal."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, Mapping):
            stack.extend(top.values())
        elif isinstance(top, list | tuple):
            stack.extend(top)
        elif isinstance(top, Undefined):
            top._fail_with_undefined_error()


@cache
def _environment(lenient: bool) -> _Environment:
    environment = _Environment(
        undefined=_Lenient if lenient else _Strict,
        finalize=_write,
        optimized=False,
        autoescape=False,
        cache_size=0,
    )
    environment.filters = {**FILTERS, **INNER_FILTERS}
    environment.tests = dict(TESTS)
    environment.globals = {"range": _range, "dict": _dict}
    return environment


def compile_jinja(template: Template) -> Reader:
    """A renderer for template text. Raises `ExpressionError` when the text does not compile."""
    environment = _environment(template.lenient)
    tree = _parse(template)
    whole = _whole_expression(tree, template) if template.native else None
    try:
        tree = rewrite(whole or tree, FILTERS, TESTS)
        code = environment.compile(tree, filename=_FILENAME)
        compiled = JinjaTemplate.from_code(environment, code, {})
    except NotAllowed as refused:
        offset = first_offset(template.source, refused.word, refused.line)
        raise template.error(refused.message, offset, refused.hint) from None
    except TemplateSyntaxError as error:
        raise _syntax_error(template, error) from None
    except (RecursionError, SyntaxError, MemoryError, OverflowError, ValueError):
        raise template.error("the template is nested too deeply, or has a number that is too large") from None
    return _Renderer(template, environment, compiled, whole is not None)


_FILENAME = "<flat template>"


def _parse(template: Template) -> nodes.Template:
    if len(template.source) > template.limits.source:
        raise template.error(f"the template is longer than {template.limits.source:,} characters")
    text = template.source.strip() if template.native else template.source
    try:
        return _environment(template.lenient)._parse(text, None, None)
    except TemplateSyntaxError as error:
        raise _syntax_error(template, error) from None
    except (RecursionError, ValueError, OverflowError):
        raise template.error("the template is nested too deeply, or has a number that is too large") from None


def _syntax_error(template: Template, error: TemplateSyntaxError) -> ExpressionError:
    offset = line_of(template.source, error.lineno) if error.lineno > 1 else None
    return template.error(f"not a template: {error.message}", offset)


def _whole_expression(tree: nodes.Template, template: Template) -> nodes.Template | None:
    """For a text that is one `{{ expression }}`: a tree that stores the expression's value instead of writing
    it."""
    match tree.body:
        case [nodes.Output(nodes=[expression])] if not isinstance(expression, nodes.TemplateData):
            target = nodes.Name(_RESULT, "store", lineno=1)
            return nodes.Template([nodes.Assign(target, expression, lineno=1)], lineno=1)
    return None


class _Renderer:
    """A compiled template, called with a scope."""

    __slots__ = ("compiled", "environment", "native", "template")

    def __init__(
        self, template: Template, environment: _Environment, compiled: JinjaTemplate, native: bool
    ) -> None:
        self.template, self.environment, self.compiled, self.native = template, environment, compiled, native

    def __call__(self, scope: Scope) -> Any:
        context = _Context(self.environment, {**self.environment.globals, **scope}, None, {})
        context.budget = Budget(self.template.limits)
        try:
            chunks = self.compiled.root_render_func(context)
            return self._value(context, chunks) if self.native else self._text(chunks)
        except ExpressionError:
            raise
        except Exception as error:
            raise self._explained(error, scope) from (None if isinstance(error, Refusal) else error)

    def _text(self, chunks: Iterator[str]) -> str:
        texts, length = [], 0
        for chunk in chunks:
            length += len(chunk)
            if length > self.template.limits.output:
                raise too_long(self.template)
            texts.append(chunk)
        return "".join(texts)

    def _value(self, context: _Context, chunks: Iterator[str]) -> Any:
        for _ in chunks:
            pass
        value = context.vars[_RESULT]
        if isinstance(value, Undefined):
            str(value)
            return None
        _require_data(value)
        if isinstance(value, list | tuple | Mapping):
            context.budget.weigh(value)
            _require_defined(value)
        return list(value) if isinstance(value, range) else value

    def _explained(self, error: Exception, scope: Scope) -> ExpressionError:
        """Any failure of a rendering, in the author's words and at the author's place."""
        template = self.template
        line = self._line(error)
        if isinstance(error, _UndefinedUsed):
            return self._undefined(error, line, scope)
        offset = line_of(template.source, line) if line and line > 1 else None
        if isinstance(error, Refusal):
            message = error.naming("the left side", "the right side")
            return template.error(message, offset, error.hint)
        if isinstance(error, RecursionError):
            return template.error("the template calls itself too deeply", offset)
        if isinstance(error, SecurityError):
            return template.error("this cannot be called in a template", offset)
        return template.error(str(error) or type(error).__name__, offset)

    def _undefined(self, error: _UndefinedUsed, line: int | None, scope: Scope) -> ExpressionError:
        found = locate_undefined(_parse(self.template), self.template.source, str(error.name), line, scope)
        path, offset = found or (str(error.name), None)
        if error.obj is missing:
            return undefined(self.template, path, offset, missing=str(error.name), known=scope)
        if not isinstance(error.name, str) and isinstance(error.obj, str | list | tuple):
            message = f"there is no element {error.name!r}: the value before it is {describe(error.obj)}"
            return self.template.error(f"{message} of {len(error.obj)}", offset)
        return undefined(self.template, path, offset, missing=str(error.name), holder=error.obj)

    def _line(self, error: BaseException) -> int | None:
        trace, line = error.__traceback__, None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == _FILENAME:
                line = self.compiled.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


def names_used(template: Template) -> dict[str, int]:
    """The names that a template takes from the scope, and where it first does."""
    names = meta.find_undeclared_variables(_parse(template)) - {"range", "dict"}
    return {name: first_offset(template.source, name) or 0 for name in names}
