"""The one thread in which all model calls run, and the late import of litellm.

litellm and its HTTP clients belong to one asyncio loop and dislike others: several loops in a process cost
warnings, clients that are never closed, and trio cannot run it at all. So there is one loop, in a daemon
thread, made on the first call. Callers on asyncio and on trio wait for it with `run`; when a caller is
cancelled, the work is cancelled too, which closes its connection. litellm takes seconds to import, so
`prefetch` may start that early.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

from flat.errors import AgentFailed

T = TypeVar("T")
Emit = Callable[[str], None]
Work = Callable[[Emit], Coroutine[Any, Any, T]]

# All must be set before the import; what the user has set stays. In order: no fetch of a price list at
# import, no reading of stray `.env` files, no log lines below errors, and more than 500 connections.
_SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "AIOHTTP_CONNECTOR_LIMIT": "2000",
    "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "2000",
}
_CLOSE_SECONDS = 2.0

_lock = threading.Lock()
_thread: LLMThread | None = None
_litellm: concurrent.futures.Future[Any] | None = None


class LLMThread:
    """A daemon thread with an asyncio loop. A submitted future's `result` blocks, its `cancel` aborts."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="flat-llm")
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start the work on the loop."""
        # In a context of its own: with a trio caller's, anyio would take this loop for trio.
        return contextvars.Context().run(asyncio.run_coroutine_threadsafe, self._tracked(work), self._loop)

    def close(self) -> None:
        """Cancel what runs, let litellm put its things away, end the thread. It may not be used after."""
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop).result(4 * _CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    async def _wind_down(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if _litellm is None or not _litellm.done() or _litellm.exception():
            return
        worker = importlib.import_module("litellm.litellm_core_utils.logging_worker").GLOBAL_LOGGING_WORKER
        for step in (worker.flush, worker.stop, _litellm.result().close_litellm_async_clients):
            # Housekeeping of a foreign library at the end: nobody is left to whom a failure would matter.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await step()
        # What is left is litellm's too: its worker moves away when somebody uses litellm on another loop.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def prefetch() -> concurrent.futures.Future[Any]:
    """Start importing litellm in the background, once; gives a future of the module."""
    global _litellm
    with _lock:
        if _litellm is None:
            _litellm = concurrent.futures.Future()
            threading.Thread(
                target=_import, args=(_litellm,), daemon=True, name="flat-import-litellm"
            ).start()
        return _litellm


async def loaded() -> Any:
    """The litellm module, imported by now. For use on the LLM thread."""
    try:
        return await asyncio.shield(asyncio.wrap_future(prefetch()))
    except Exception as error:  # importing so much foreign code may fail in any way
        raise AgentFailed(
            f"litellm could not be imported: {type(error).__name__}: {error}",
            code="model_unavailable",
            hint="pip install litellm",
        ) from error


async def run(work: Work[T], on_token: Emit | None = None) -> T:
    """Run the work on the LLM thread and wait for it, on asyncio or trio.

    The work gets a function that hands text to `on_token`, which is called in the caller's own thread and
    context. An error of `on_token` ends the work and is raised here.
    """
    post, done, context = _post(), anyio.Event(), contextvars.copy_context()
    broken: list[BaseException] = []

    def deliver(text: str) -> None:
        if on_token is None or broken:
            return
        try:
            context.run(on_token, text)
        except BaseException as error:  # on trio an error that escapes from here would end the whole run
            broken.append(error)
            done.set()

    def quietly(function: Callable[..., Any], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended: nobody is listening
            post(function, *args)

    future = current_thread().submit(work(lambda text: quietly(deliver, text)))
    future.add_done_callback(lambda _: quietly(done.set))
    try:
        await done.wait()
    finally:
        future.cancel()
    if broken:
        raise broken[0]
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise AgentFailed("the model call was ended by the shutdown of its thread", retryable=True) from None


def current_thread() -> LLMThread:
    """The thread of this process, started when there is none."""
    global _thread
    with _lock:
        if _thread is None:
            _thread = LLMThread()
        return _thread


def close() -> None:
    """End the thread in good order, if there is one; may block for seconds. A later call starts a new one."""
    global _thread
    with _lock:
        thread, _thread = _thread, None
    if thread is not None:
        thread.close()


async def aclose() -> None:
    """`close` for async callers."""
    await anyio.to_thread.run_sync(close)


def _post() -> Callable[..., Any]:
    """How another thread gets a function called in the loop of the running task."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        post: Callable[..., Any] = trio.lowlevel.current_trio_token().run_sync_soon
        return post
    return asyncio.get_running_loop().call_soon_threadsafe


def _import(into: concurrent.futures.Future[Any]) -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        litellm: Any = importlib.import_module("litellm")
        litellm.suppress_debug_info = True  # else it prints a banner on stdout for every error
        # A call that is cancelled very early leaves a coroutine behind that litellm has made in a worker
        # thread. Nothing is lost by it, and nobody but litellm could have awaited it.
        warnings.filterwarnings("ignore", r"coroutine '\w+\.acompletion' was never awaited", RuntimeWarning)
        # An answer of another shape than it promised is our error to report, not pydantic's to print.
        warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
        # After litellm's own exit functions were registered, so that ours runs before them: they complain
        # about a loop that still runs.
        atexit.register(close)
    except BaseException as error:
        into.set_exception(error)
    else:
        into.set_result(litellm)


def _forget() -> None:
    """A forked child has no threads: it starts its own."""
    global _thread, _lock, _litellm
    _thread, _lock = None, threading.Lock()
    if _litellm is not None and not _litellm.done():
        _litellm = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
