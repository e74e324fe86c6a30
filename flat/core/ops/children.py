"""`machine:` and `foreach:` run other machines as executions of their own, and wait for what they come to.

Not all are asked for at once: `at_once` bounds how many run at the same time, and the next is asked for when one
ends. What they gave is kept in the order in which it came, so that keeping it only ever appends; it is put in
order at the end. A child that fails is an entry like any other, except where there is only the one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flat.core.effects import StartChild
from flat.core.events import Done, Ended, Failed
from flat.core.failure import Failure
from flat.core.grown import Grown
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.template import CompiledMapping, Template


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCall:
    """One machine to run, with input of its own merged over the shared one."""

    machine: str
    input: CompiledMapping | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """`local` holds `todo` (machine, input and, with a key, key of each child), `next` (the first not asked for) and
    `done` (`[number, succeeded, value]` as they came)."""

    calls: tuple[ChildCall, ...]
    input: CompiledMapping | None = None
    single: bool = False
    """One machine, named alone: its output is the output, and its failure is the state's."""
    foreach: Template | None = None
    as_: str = "item"
    item_key: Template | None = None
    mode: Literal["settled", "any"] = "settled"
    at_once: int | None = None
    """How many may run at the same time; None for all."""
    in_doubt: str = "retry"
    key: str = "children"
    kind: Literal["children"] = "children"

    def start(self, here: View) -> Answer:
        local = here.local
        if local is None:
            todo = self._todo(here)
            if not todo:
                return Next(output={} if self.item_key is not None or self.foreach is None else [])
            local = {"todo": todo, "next": 0, "done": []}
        answered = {number for number, _, _ in local["done"]}
        open_ = [n for n in range(local["next"]) if n not in answered]
        return self._ask(here, local, open_)

    def resume(self, here: View, event: Done | Failed) -> Answer:
        number = self._number(event.effect_id)
        if isinstance(event, Failed):
            if self.single:
                return Raise(event.failure)
            succeeded, value = False, told(event.failure)
        else:
            ended: Ended = event.value
            here.spend(ended.spent)
            succeeded, value = True, ended.output
        local = {**here.local, "done": Grown(here.local["done"], [[number, succeeded, value]])}
        if self.single:
            return Next(output=value)
        if self.mode == "any" and succeeded:
            return Next(output=self._shown(local, [local["done"][-1]]))
        if len(local["done"]) == len(local["todo"]):
            return self._all_in(here, local, event)
        return self._ask(here, local, [])

    def _all_in(self, here: View, local: Mapping[str, Any], event: Done | Failed) -> Answer:
        late = here.deadline is not None and here.at >= here.deadline
        if self.mode == "any" and late and isinstance(event, Failed):
            return Raise(event.failure)
        return Next(output=self._shown(local, sorted(local["done"])))

    def _ask(self, here: View, local: Mapping[str, Any], again: Sequence[int]) -> Answer:
        """Ask again for what has no answer yet, and for as many more as there is room for."""
        todo, first = local["todo"], local["next"]
        running = first - len(local["done"])
        room = len(todo) if self.at_once is None else max(0, self.at_once - running)
        last = min(len(todo), first + room)
        effects = tuple(
            StartChild(
                here.effect_id(self.key, str(number) if len(todo) > 1 or not self.single else ""),
                here.node,
                todo[number][0],
                todo[number][1],
                deadline=here.deadline,
                in_doubt=self.in_doubt,
            )
            for number in (*again, *range(first, last))
        )
        return Block(effects, {**local, "next": last} if last != first else local)

    def _number(self, effect_id: str) -> int:
        suffix = effect_id.rpartition("/")[2].removeprefix(self.key).removeprefix(".")
        return int(suffix) if suffix else 0

    # -- what to run ------------------------------------------------------------------

    def _todo(self, here: View) -> list[list[Any]]:
        if self.foreach is not None:
            return self._items(here)
        scope = here.scope
        shared = {} if self.input is None else self.input.render(scope)
        # One name is one child: of entries that repeat a name the last one counts.
        inputs = {c.machine: {**shared, **(c.input.render(scope) if c.input else {})} for c in self.calls}
        return [list(entry) for entry in inputs.items()]

    def _items(self, here: View) -> list[list[Any]]:
        assert self.foreach is not None
        scope, machine = here.scope, self.calls[0].machine
        items = self.foreach.render(scope)
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Sequence):
            hint = "name a list: `context.items`, or `{{ context.items }}`"
            raise self.foreach.error(f"foreach needs a list, and this is {_kind(items)}", None, hint)
        todo: dict[Any, list[Any]] = {}
        for number, item in enumerate(items):
            seen = {**scope, self.as_: item}
            key = number if self.item_key is None else str(self.item_key.render(seen))
            if self.item_key is not None and key in todo:
                raise self.item_key.error(f'items {todo[key][3]} and {number} have the same key "{key}"')
            given = {} if self.input is None else self.input.render(seen)
            if (own := self.calls[0].input) is not None:
                given = {**given, **own.render(seen)}
            todo[key] = [machine, given, key, number]
        return [entry[: 2 if self.item_key is None else 3] for entry in todo.values()]

    # -- what came of it -----------------------------------------------------------------

    def _shown(self, local: Mapping[str, Any], done: Sequence[Sequence[Any]]) -> Any:
        """List items in order; results by key, or by the machine's name, where there is one."""
        todo = local["todo"]
        if self.foreach is None:
            return {todo[number][0]: value for number, _, value in done}
        if self.item_key is None:
            return [value for _, _, value in done]
        return {todo[number][2]: value for number, _, value in done}


def told(failure: Failure) -> dict[str, str]:
    """A failed child as its siblings' parent sees it."""
    return {"_error": failure.message, "_error_type": failure.type}


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool | int | float):
        return f"the number {value}" if not isinstance(value, bool) else str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    return f'text ("{value[:40]}")' if isinstance(value, str) else f"a {type(value).__name__}"
