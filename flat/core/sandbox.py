"""Jinja, without what makes Jinja dangerous: how template text becomes a function from scope to value.

Theory of operation. The text is parsed by Jinja and the syntax tree is rewritten before Jinja compiles it:

- Every construct that calls, slices, joins or builds goes through one of our own filters (their names hold a space, so no
  template can write them). A method call `x.upper()` becomes a look-up in a fixed table; attribute access never
  reaches a Python attribute, only a mapping's key. Python objects are therefore out of reach, whatever they are.
- Loops and macros begin each turn by paying for the parts they contain. Text inside them is paid for when it is
  emitted. A rendering has a purse (`Budget`) of steps and characters, and ends when it is empty.
- Constants are not folded, so nothing is computed before there is a purse to pay from.

Statements that reach other templates (`include`, `import`, `extends`, `block`) are refused when compiling.
This module imports Jinja and is imported by `flat.core.template` for the first template that needs it.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import StrictUndefined, Undefined, meta, nodes, pass_context
from jinja2.environment import Template as JinjaTemplate
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from flat.core import operators
from flat.core.budget import Budget, Exhausted
from flat.core.operators import Refusal
from flat.core.sandbox_filters import FILTERS, TESTS, Methodless, call_method
from flat.core.sandbox_rewrite import NotAllowed, rewrite
from flat.core.values import Reader, Scope
from flat.errors import ExpressionError, did_you_mean

if TYPE_CHECKING:
    from flat.core.template import Template

FILENAME = "<flat template>"
LOOP_FIELDS = frozenset(
    ("index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem", "depth", "depth0")
)
