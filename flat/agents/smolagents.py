"""Agents of the smolagents library: a factory of the user's makes one, and it runs in a thread.

    coder: {type: smolagents, ref: "./agents.py#build_agent", config: {max_steps: 5}}

The library is imported when such an agent is made, not before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.agents.turns import Failing, task_of, verdict, without_secrets
from flat.errors import AgentFailed, SpecError

FACTORY = "build_agent"
INSTALL = "pip install smolagents"

_FORWARDED = ("max_steps", "additional_args", "return_full_result", "images", "reset")


class SmolagentsAgent:
    """An agent made by a factory, on the first call. It has one memory, so calls take turns."""

    def __init__(self, config: Mapping[str, Any], directory: Path, *, name: str = "smolagents") -> None:
        ref = config.get("ref")
        if not ref or not isinstance(ref, str):
            raise SpecError(
                f'agent "{name}" (smolagents): `ref` is missing; it names the factory, as in '
                f'"./agents.py#{FACTORY}" or "my_package.agents#{FACTORY}"'
            )
        self.name, self.ref, self.directory = name, ref, directory
        self.config = {key: value for key, value in config.items() if key != "ref"}
        self.fail = Failing(name, "smolagents", self.config)
        self._agent: Any = None
        self._turn: anyio.Lock | None = None

    def take(self, agent: Any) -> None:
        """Use an agent that is there already, in place of what the factory would make."""
        self._agent = agent

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        task = task_of(request, self.fail)
        if self._turn is None:
            self._turn = anyio.Lock()
        with anyio.move_on_after(math.inf if request.timeout is None else request.timeout):
            async with self._turn:
                return await self._run(task, request)
        raise self.fail.timeout(f"not done within {request.timeout:g} s")

    async def _run(self, task: str, request: AgentRequest) -> AgentResult:
        if self._agent is None:
            self._agent = await anyio.to_thread.run_sync(self._make)
        given = {key: request.input[key] for key in _FORWARDED if request.input.get(key) is not None}
        work = functools.partial(self._agent.run, task, **{"return_full_result": True, **given})
        try:
            found = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            # A thread cannot be ended: it is told to stop after the step it is in, and its agent is not used again.
            agent, self._agent = self._agent, None
            agent.interrupt()
            raise
        except Exception as error:  # models, tools and the library itself raise what they like
            judged = verdict(str(error))
            raise self.fail(
                f"{type(error).__name__}: {error}", type=type(error).__name__, **judged
            ) from error
        if request.on_token is not None and isinstance(text := getattr(found, "output", found), str):
            request.on_token(text)
        return _result(found)

    def _make(self) -> Any:
        try:
            library = importlib.import_module("smolagents")
        except ImportError as error:
            raise self.fail(
                f"the package smolagents cannot be imported ({error}): {INSTALL}",
                code="model_unavailable",
                type="ImportError",
                hint=INSTALL,
            ) from error
        factory = _factory(self.ref, self.directory, self.fail)
        made = factory(**without_secrets(self.config))
        if not isinstance(made, library.MultiStepAgent):
            raise self.fail(
                f"{self.ref} gave a {type(made).__name__}, not a MultiStepAgent of smolagents",
                code="invalid_request",
                type="TypeError",
            )
        return made


def _factory(ref: str, directory: Path, fail: Failing) -> Callable[..., Any]:
    """The function that `module#name` or `file.py#name` stands for."""
    where, _, name = ref.partition("#")
    is_file = where.endswith(".py") or where.startswith(".") or "/" in where
    try:
        module = (
            _from_file(directory / Path(where).expanduser()) if is_file else importlib.import_module(where)
        )
    except (ImportError, OSError) as error:
        raise _unusable(fail, f"{where} cannot be imported: {error}", error) from error
    factory = getattr(module, name or FACTORY, None)
    if not callable(factory):
        known = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise _unusable(fail, f'{where} has no function "{name or FACTORY}"; it has: {known or "none"}')
    return factory  # type: ignore[no-any-return]


def _unusable(fail: Failing, message: str, error: Exception | None = None) -> AgentFailed:
    kind = type(error).__name__ if error is not None else "AttributeError"
    return fail(message, code="invalid_request", type=kind)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # Files of one name in several folders are several modules.
    name = f"flat_agent_{path.stem}_{zlib.crc32(os.fsencode(path.absolute())):08x}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses and the like look their module up
    specification.loader.exec_module(module)
    return module


def _result(found: Any) -> AgentResult:
    output = getattr(found, "output", found)
    spent = getattr(found, "token_usage", None)
    usage = Usage(
        input_tokens=int(getattr(spent, "input_tokens", 0) or 0),
        output_tokens=int(getattr(spent, "output_tokens", 0) or 0),
        api_calls=1,
    )
    facts = {"state": getattr(found, "state", None), "steps": getattr(found, "steps", None)}
    metadata = {key: value for key, value in facts.items() if value is not None}
    if isinstance(output, Mapping):
        content = output.get("content")
        return AgentResult(
            output=dict(output),
            content=content if isinstance(content, str) else None,
            usage=usage,
            metadata=metadata,
        )
    text = "" if output is None else str(output)
    return AgentResult(output={"content": text}, content=text, usage=usage, metadata=metadata)
