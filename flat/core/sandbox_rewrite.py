"""The syntax tree of a Jinja template, made harmless before Jinja compiles it.

Whatever calls, slices, joins or builds goes through a filter of our own, so that it can be checked and paid
for; loops and macros pay at the start of each turn for what they contain. The names of our filters hold a
space: no template can write them. Statements outside the list are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from flat.errors import did_you_mean

CALL, SLICE, JOIN, BUILT, SEEN, TICK = (
    "flat call",
    "flat slice",
    "flat join",
    "flat built",
    "flat seen",
    "flat tick",
)
MAX_DEPTH = 150
MAX_NODES = 50_000

_ALLOWED: frozenset[type[nodes.Node]] = frozenset(
    {
        nodes.Template,
        nodes.Output,
        nodes.TemplateData,
        nodes.Name,
        nodes.Const,
        nodes.List,
        nodes.Tuple,
        nodes.Dict,
        nodes.Pair,
        nodes.Keyword,
        nodes.Filter,
        nodes.Test,
        nodes.Getattr,
        nodes.Getitem,
        nodes.Slice,
        nodes.Concat,
        nodes.Compare,
        nodes.Operand,
        nodes.Not,
        nodes.Neg,
        nodes.Pos,
        nodes.And,
        nodes.Or,
        nodes.CondExpr,
        nodes.Call,
        nodes.For,
        nodes.If,
        nodes.Assign,
        nodes.AssignBlock,
        nodes.Macro,
        nodes.CallBlock,
        nodes.FilterBlock,
        nodes.With,
        nodes.Add,
        nodes.Sub,
        nodes.Mul,
        nodes.Div,
        nodes.FloorDiv,
        nodes.Mod,
        nodes.Pow,
    }
)
_REFUSED = {
    "Include": "`include`",
    "Import": "`import`",
    "FromImport": "`import`",
    "Extends": "`extends`",
    "Block": "`block`",
    "NSRef": "assigning to an attribute",
    "Scope": "`autoescape`",
}


class NotAllowed(Exception):
    """Something a template may not contain. `word` is what to look for on the line."""

    def __init__(self, message: str, line: int, word: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.word, self.hint = message, line, word, hint


def rewrite(tree: nodes.Template, filters: Collection[str], tests: Collection[str]) -> nodes.Template:
    """The tree to compile instead. The given one must not be used any more."""
    rewritten = _Rewriter(filters, tests).visit(tree)
    assert isinstance(rewritten, nodes.Template)
    return rewritten


class _Rewriter(NodeTransformer):
    def __init__(self, filters: Collection[str], tests: Collection[str]) -> None:
        self.filters, self.tests = filters, tests
        self.depth = self.count = self.turning = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        kind = type(node).__name__
        if type(node) not in _ALLOWED:
            what = _REFUSED.get(kind, kind)
            raise NotAllowed(f"{what} is not available in a template", node.lineno or 1, what.strip("`"))
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH:
            raise NotAllowed(f"the template is nested more than {MAX_DEPTH} levels deep", node.lineno)
        if self.count > MAX_NODES:
            raise NotAllowed(f"the template has more than {MAX_NODES:,} parts", node.lineno)
        try:
            return super().visit(node, *args, **kwargs)
        finally:
            self.depth -= 1

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
        if node.name in ("self", "super"):
            raise NotAllowed(f"`{node.name}` is not available in a template", node.lineno, node.name)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        """`x.name(…)` is a look-up of `name` among the methods that templates may use."""
        callee = node.node
        if not isinstance(callee, nodes.Getattr):
            return self.generic_visit(node)
        name = nodes.Const(callee.attr, lineno=node.lineno)
        node.args = [self.visit(arg) for arg in node.args]
        node.kwargs = [self.visit(keyword) for keyword in node.kwargs]
        dyn_args = self.visit(node.dyn_args) if node.dyn_args is not None else None
        dyn_kwargs = self.visit(node.dyn_kwargs) if node.dyn_kwargs is not None else None
        return nodes.Filter(
            self.visit(callee.node),
            CALL,
            [name, *node.args],
            node.kwargs,
            dyn_args,
            dyn_kwargs,
            lineno=node.lineno,
        )

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """Slices do not pass through the environment, so they become a filter."""
        if not isinstance(node.arg, nodes.Slice):
            return self.generic_visit(node)
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        none = nodes.Const(None, lineno=node.lineno)
        return _own(SLICE, self.visit(node.node), [none if b is None else self.visit(b) for b in bounds])

    def visit_Slice(self, node: nodes.Slice) -> nodes.Node:  # noqa: N802
        raise NotAllowed("a slice takes no other index beside it", node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [self.visit(part) for part in node.nodes]
        return _own(JOIN, nodes.List(parts, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._built(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._built(node, node.items) if node.ctx == "load" else self.generic_visit(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._built(node, [pair.value for pair in node.items])

    def _built(self, node: Any, items: Sequence[nodes.Node]) -> nodes.Node:
        """A literal that repeats a value could grow without end, so literals are weighed."""
        plain = all(isinstance(item, nodes.Const) for item in items)
        node = self.generic_visit(node)
        return node if plain and not self.turning else _own(BUILT, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.expr = _seen(node.expr)
        for operand in node.ops:
            operand.expr = _seen(operand.expr)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        if node.name not in self.filters:
            hint = did_you_mean(node.name, self.filters)
            raise NotAllowed(f"there is no filter `{node.name}`", node.lineno, node.name, hint)
        return self.generic_visit(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        if node.name not in self.tests:
            hint = did_you_mean(node.name, self.tests)
            raise NotAllowed(f"there is no test `{node.name}`", node.lineno, node.name, hint)
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        node.iter = self.visit(node.iter)
        node.else_ = [self.visit(part) for part in node.else_]
        price = self._turn(node.body, node.test)
        node.body = [nodes.ExprStmt(price, lineno=node.lineno), *node.body]
        if node.test is not None:
            self.turning += 1
            node.test = nodes.And(price, self.visit(node.test), lineno=node.lineno)
            self.turning -= 1
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        node.defaults = [self.visit(part) for part in node.defaults]
        price = self._turn(node.body)
        node.body = [nodes.ExprStmt(price, lineno=node.lineno), *node.body]
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        if isinstance(node.call.node, nodes.Getattr):
            raise NotAllowed("`call` needs a macro", node.lineno, "call")
        node.call = self.generic_visit(node.call)  # type: ignore[assignment]
        node.defaults = [self.visit(part) for part in node.defaults]
        price = self._turn(node.body)
        node.body = [nodes.ExprStmt(price, lineno=node.lineno), *node.body]
        return node

    def _turn(self, body: list[nodes.Node], test: nodes.Node | None = None) -> nodes.Filter:
        """Rewrite what is repeated, in place; gives the expression that pays for one turn."""
        self.turning += 1
        before = self.count
        body[:] = [self.visit(part) for part in body]
        self.turning -= 1
        lineno = body[0].lineno if body else 0
        return _own(TICK, nodes.Const(2 + self.count - before + (test is not None), lineno=lineno))

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        """Literal text in a loop becomes an expression, so that it is paid for each time it is written."""
        return nodes.Const(node.data, lineno=node.lineno) if self.turning else node


def _own(name: str, node: nodes.Expr, args: Sequence[nodes.Expr] = ()) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _seen(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _own(SEEN, node)
