"""Every error that `flat` raises, and how an error points at a place in a file.

    FlatError
    ├── DefinitionError         the author's, before running
    │   ├── SpecError           a file says something that cannot be; carries every problem found
    │   ├── UnknownName         a name that nothing answers to
    │   └── ExpressionError     a template or condition that does not compile or evaluate
    ├── BindingError            a name with no Python behind it
    ├── TreeError               a tree of nodes; `code` says what is wrong with it
    │   ├── CharterError        a charter, or a part of one, that cannot be (also a DefinitionError)
    │   ├── CharterMismatch     stored data that the charter cannot take; carries every problem with its path
    │   ├── StateError          a state that its schema refuses
    │   └── CallRefused         a call, a transition or a command that cannot be done; the model is told why
    ├── ExecutionError          a run failed
    │   ├── AgentFailed         ├── ActionFailed     ├── HookFailed
    │   └── DeadlineExceeded    └── LimitExceeded
    └── BackendError            storage or coordination
        ├── ExecutionNotFound   ├── ExecutionBusy ── MachineBusy
        ├── StaleSnapshot ── SignalGone              ├── IncompatibleSnapshot
        ├── NotStorable         ├── BadStoreURL
        └── WorkItemNotFound    └── WorkerNotFound   └── WorkNotHeld

Waiting is a status, not an error. Inside a snapshot a failure is data (`core.failure`).
Errors keep their facts as attributes and survive pickling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a text file. Lines and columns count from 1; `text` is the whole source line."""

    file: str
    line: int
    column: int
    text: str = ""
    width: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def moved_into(self, source: str, offset: int | None, width: int = 1) -> Location:
        """The place `offset` characters into the text `source` that starts here.

        Only text that stands in the file as it is, on one line, can be followed; else this same place.
        """
        if offset is None or "\n" in source:
            return self
        column = self.column
        if self.text and not self.text.startswith(source, column - 1):
            if not self.text.startswith(source, column):  # a quoted scalar begins after its quote
                return self
            column += 1
        return replace(self, column=column + offset, width=width)

    def snippet(self) -> str:
        """The source line with a caret below the place; empty when the line is not known."""
        if not self.text:
            return ""
        shown = self.text.rstrip("\n")
        number = str(self.line)
        lead = "".join(c if c == "\t" else " " for c in shown[: self.column - 1])
        mark = "^" * max(1, min(self.width, len(shown) - self.column + 1))
        return f" {number} | {shown}\n {' ' * len(number)} | {lead}{mark}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about a file: a stable code, what is wrong, where, and what to do about it."""

    code: str
    message: str
    location: Location | None = None
    hint: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        head = f"{self.location}: " if self.location else ""
        parts = [f"{head}{self.severity}[{self.code}]: {self.message}"]
        if self.location and (snippet := self.location.snippet()):
            parts.append(snippet)
        if self.hint:
            parts.append(f"  help: {self.hint}")
        return "\n".join(parts)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` for the nearest known name, else a list of what exists, else nothing."""
    names = [str(k) for k in known]
    if close := nearest(str(name), names):
        return f'did you mean "{close}"?'
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:12])
    return f"known: {shown}{', …' if len(names) > 12 else ''}"


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that was probably meant: one slip of the keyboard away, or else similar; or empty."""
    slips = [k for k in known if abs(len(k) - len(name)) <= 1 and _one_slip(name.lower(), k.lower())]
    if slips and (len(name) > 1 or len(slips) == 1):
        return max(slips, key=lambda k: difflib.SequenceMatcher(None, name, k).ratio())
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else ""


def _one_slip(a: str, b: str) -> bool:
    """Whether one inserted, missing, wrong or swapped character turns one text into the other."""
    if len(a) > len(b):
        a, b = b, a
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) < len(b):
        return a[start:] == b[start + 1 :]
    rest, other = a[start:], b[start:]
    return rest[1:] == other[1:] or (rest[:2] == other[1::-1] and rest[2:] == other[2:])


class FlatError(Exception):
    """Base of all errors of this package. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[FlatError], args: tuple[Any, ...], state: dict[str, Any]) -> FlatError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class DefinitionError(FlatError):
    """The definition of a machine is wrong; nothing has run."""

    exit_code = 3


class SpecError(DefinitionError):
    """A file cannot be used. `problems` holds every finding, in file order."""

    def __init__(self, problems: Sequence[Problem] | Problem | str, location: Location | None = None) -> None:
        if isinstance(problems, str):
            problems = Problem("invalid", problems, location)
        if isinstance(problems, Problem):
            problems = (problems,)
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class UnknownName(DefinitionError):
    """A name that nothing answers to; the message lists what exists."""

    def __init__(
        self, kind: str, name: str, known: Iterable[str] = (), location: Location | None = None
    ) -> None:
        self.kind, self.name, self.known, self.location = kind, name, tuple(known), location
        hint = did_you_mean(name, self.known)
        where = f"{location}: " if location else ""
        super().__init__(f'{where}unknown {kind} "{name}"' + (f"; {hint}" if hint else ""))


class ExpressionError(DefinitionError):
    """A template or a condition that does not compile, or fails when it is evaluated.

    `offset` is the 0-based place in the expression's own text where the trouble is, if known;
    `path` is the dotted path of the value that caused it (`context.n`), if one did.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        source: str = "",
        offset: int | None = None,
        location: Location | None = None,
        hint: str = "",
        path: str = "",
    ) -> None:
        self.message, self.source, self.offset, self.location, self.hint = (
            message,
            source,
            offset,
            location,
            hint,
        )
        self.path = path
        super().__init__(message)

    def __str__(self) -> str:
        parts = [f"{self.location}: {self.message}" if self.location else self.message]
        if self.location and (snippet := self.location.snippet()):
            parts.append(snippet)
        elif self.source:
            parts.append(f"  in: {self.source}")
        if self.hint:
            parts.append(f"  help: {self.hint}")
        return "\n".join(parts)


class BindingError(FlatError):
    """A program needs a name that no Python object was registered for."""

    exit_code = 3

    def __init__(self, kind: str, name: str, known: Iterable[str] = (), hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        near = did_you_mean(name, self.known)
        tail = "; ".join(x for x in (near, hint) if x)
        super().__init__(f'no {kind} is registered under the name "{name}"' + (f": {tail}" if tail else ""))


class TreeError(FlatError):
    """Something is wrong with a tree of nodes. `code` is stable; the message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


class CharterError(TreeError, DefinitionError):
    """A charter, node, pack, tool, transition or command that cannot be as it is written."""

    exit_code = 3


class CharterMismatch(TreeError):
    """What is stored does not fit the charter. `problems` holds `(path, ref, message)` of each, in order."""

    exit_code = 3

    def __init__(self, problems: Sequence[tuple[str, str, str]], code: str = "unknown_ref") -> None:
        self.problems = tuple(problems)
        super().__init__(
            code, "\n".join(f"{path}: {text}" if path else text for path, _, text in self.problems)
        )


class StateError(TreeError):
    """A state that its schema refuses. `errors` holds `(path, message)` of each fault."""

    def __init__(
        self, message: str, errors: Sequence[tuple[str, str]] = (), code: str = "state_patch_invalid"
    ) -> None:
        self.errors = tuple(errors)
        super().__init__(code, message)


class CallRefused(TreeError):
    """A tool call, transition or command that cannot be done. The tree is unchanged."""


class ExecutionError(FlatError):
    """A run failed. `type` is the failure's name as `on_error` sees it."""

    def __init__(
        self,
        message: str,
        *,
        execution_id: str = "",
        node: str = "",
        type: str = "",
        location: Location | None = None,
    ) -> None:
        self.message, self.execution_id, self.node, self.location = message, execution_id, node, location
        self.type = type or self.__class__.__name__
        super().__init__(message)

    def __str__(self) -> str:
        at = f' in state "{self.node}"' if self.node else ""
        of = f" (execution {self.execution_id})" if self.execution_id else ""
        where = f"{self.location}: " if self.location else ""
        text = f"{where}{self.type}{at}{of}: {self.message}"
        if self.location and (snippet := self.location.snippet()):
            text += "\n" + snippet
        return text


class AgentFailed(ExecutionError):
    """A model call failed. `code` is one of the fixed error codes; `retryable` says whether trying again may help.

    `rate_limit` is what the answer's headers told; `usage` is what was spent nevertheless (`agents.protocol.Usage`).
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "server_error",
        retryable: bool = False,
        status_code: int | None = None,
        retry_after: float | None = None,
        hint: str = "",
        rate_limit: Any = None,
        usage: Any = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.code, self.retryable, self.status_code = code, retryable, status_code
        self.retry_after, self.hint = retry_after, hint
        self.rate_limit, self.usage = rate_limit, usage


class ActionFailed(ExecutionError):
    """An action raised, or gave something that is not a context."""


class HookFailed(ExecutionError):
    """A steering hook raised."""


class DeadlineExceeded(ExecutionError):
    """Something took longer than its `timeout`."""

    exit_code = 7


class LimitExceeded(ExecutionError):
    """A limit (steps, calls, depth, cost) was reached. What was done so far is kept."""

    exit_code = 6


class BackendError(FlatError):
    """Storage or coordination failed."""


class BadStoreURL(BackendError):
    """The text that should say where executions are kept does not."""

    exit_code = 2


class ExecutionNotFound(BackendError):
    """No execution has this id."""

    exit_code = 9

    def __init__(self, execution_id: str, hint: str = "") -> None:
        self.execution_id = execution_id
        super().__init__(f'no execution "{execution_id}" in this store' + (f"; {hint}" if hint else ""))


class ExecutionBusy(BackendError):
    """Another process owns the execution, or it is finished."""

    exit_code = 8

    def __init__(self, execution_id: str, owner: str = "", hint: str = "") -> None:
        self.execution_id, self.owner = execution_id, owner
        super().__init__(
            f'execution "{execution_id}" is being driven by {owner or "another process"}'
            + (f"; {hint}" if hint else "")
        )


class MachineBusy(ExecutionBusy):
    """Somebody runs this tree machine already; a second run would have two answers to one message."""

    code = "machine_busy"


class StaleSnapshot(BackendError):
    """A commit was refused: the lease was lost or somebody else committed first. Nothing was written."""

    exit_code = 8

    def __init__(self, execution_id: str, seq: int) -> None:
        self.execution_id, self.seq = execution_id, seq
        super().__init__(
            f'commit {seq} of execution "{execution_id}" refused: this process no longer owns the execution'
        )


class SignalGone(StaleSnapshot):
    """A commit was to take a signal that somebody else has taken. Nothing was written; the execution still waits."""

    def __init__(self, execution_id: str) -> None:
        BackendError.__init__(
            self, f'the signal for execution "{execution_id}" has been taken by another execution'
        )
        self.execution_id = execution_id


class IncompatibleSnapshot(BackendError):
    """What is stored cannot be continued: another format, or another program."""

    exit_code = 3


class NotStorable(BackendError):
    """A value cannot be stored; `path` says which, for example `context.user.seen_at`."""

    def __init__(self, path: str, value_type: str, hint: str = "") -> None:
        self.path, self.value_type = path, value_type
        super().__init__(
            f"{path} holds a {value_type}, which cannot be stored" + (f"; {hint}" if hint else "")
        )


class WorkItemNotFound(BackendError, KeyError):
    """No job has this id in its pool; a completed one is gone, unless results are kept."""

    exit_code = 9
    __str__ = Exception.__str__

    def __init__(self, item_id: str, pool: str = "") -> None:
        self.item_id, self.pool = item_id, pool
        super().__init__(f"Work item {item_id} not found" + (f' in pool "{pool}"' if pool else ""))


class WorkNotHeld(BackendError):
    """A job is not in the hands of the worker that wants to end it. Nothing was changed."""

    exit_code = 8

    def __init__(self, item_id: str, why: str, worker_id: str = "") -> None:
        self.item_id, self.worker_id = item_id, worker_id
        who = (
            f"worker {worker_id} does not hold job {item_id}"
            if worker_id
            else f"job {item_id} is not to be had"
        )
        super().__init__(f"{who}: {why}")


class WorkerNotFound(BackendError, KeyError):
    """No worker is registered under this id."""

    exit_code = 9
    __str__ = Exception.__str__

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        super().__init__(f"Worker {worker_id} not found; register it first")
