"""What the effects of a tree do: a leaf's model call, a call that its model asked for, a command.

The tree is in the effect, as it stood when the effect was asked for; the messages are the performer's log. The
model call goes to whatever the charter names as its executor: anything that answers agent requests, or the settings
of the standard call, which is made through litellm.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from flat.agents.executor_result import as_result
from flat.agents.protocol import AgentRequest, AgentResult
from flat.core.effects import CallAgent, RunTool
from flat.core.events import Reply
from flat.core.snapshot import Snapshot
from flat.core.turn import Advance, Identity
from flat.drivers.clock import DeadlinePassed
from flat.drivers.draft import settle
from flat.drivers.perform import Performer, spent_of
from flat.errors import AgentFailed
from flat.hooks import call_action, hears_stream, members, stream_listener
from flat.hooks.base import overrides, plain_copy, settled
from flat.tree.changes import change_data, change_from_data
from flat.tree.executor import StandardExecutor
from flat.tree.external import ExternalStates
from flat.tree.instance import active_instance, path_to
from flat.tree.lower import ModelRequest, TreeBinding
from flat.tree.messages import Message, Source, message_data, message_from_data
from flat.tree.request import Views, answer_message
from flat.tree.run_hooks import is_transition
from flat.tree.view import LogView

log = logging.getLogger("flat")
OUT_OF_TURN = (
    "in a run a state is made visible by on_mutation and on_hydrate callbacks, before they return, because it is "
    "recorded with what they answer to; send the machine a record to change it at another time"
)
CACHED: Mapping[str, Any] = {"type": "ephemeral"}


class Tracer(Protocol):
    """Watches spans of work; whatever it does, nothing changes."""

    def span(self, name: str, **attributes: Any) -> AbstractContextManager[Any]: ...


@dataclass
class TreeCalls:
    """Performs the effects of one tree execution."""

    binding: TreeBinding
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings that win over the charter's."""
    on_stream: Callable[[Mapping[str, Any]], Any] | None = None
    """Called with `message_start`, `message_update`, `message_end` and `message_error` events."""
    tracer: Tracer | None = None
    _read: list[Message] = field(default_factory=list)
    """The log so far, read once: a log only grows."""
    _views: Views = field(default_factory=Views)
    _clients: dict[str, Any] = field(default_factory=dict)
    _external: ExternalStates | None = None
    """The handlers of states that are owned outside, once one was called."""
    _meeting: anyio.Lock = field(default_factory=anyio.Lock)
    _steps: Any = None

    async def perform(self, effect: CallAgent | RunTool, snapshot: Identity, performer: Performer) -> Any:
        with self._span(effect):
            if isinstance(effect, CallAgent):
                return await self._think(effect, snapshot, performer)
            if "external" in effect.context:
                return await self._owners(effect, snapshot, performer)
            if "invocation" in effect.context:
                return await self._command(effect, snapshot, performer)
            return await self._call(effect, snapshot, performer)

    def _span(self, effect: CallAgent | RunTool) -> AbstractContextManager[Any]:
        if self.tracer is None:
            return nullcontext()
        name = f"model {effect.agent}" if isinstance(effect, CallAgent) else f"tool {effect.tool}"
        return self.tracer.span(name, effect_id=effect.id)

    def history(self, log: Sequence[Any], live: Mapping[str, Any], until: int) -> Sequence[Message]:
        """The messages up to a place in the log; ephemeral ones of this turn with what they show."""
        for data in log[len(self._read) : until]:
            self._read.append(message_from_data(data))
        if not live:
            return LogView(self._read, until)
        found = self._read[:until]
        for place, items in live.items():
            if int(place) < until:
                found[int(place)] = message_from_data({**log[int(place)], "items": items})
        return found

    # -- the model --------------------------------------------------------------------

    async def _think(self, effect: CallAgent, snapshot: Identity, performer: Performer) -> Reply:
        facts, context = effect.input, effect.context
        history = self.history(performer.log, context["live"], facts["at"])
        wanted = self.binding.request(
            context["tree"],
            facts["leaf"],
            history,
            ephemeral_from=facts["from"],
            current_step=facts["step"],
            max_steps=facts["max_steps"],
            views=Views() if context["live"] else self._views,
        )
        root = self.binding.tree(context["tree"])
        leaf = path_to(root, facts["leaf"])[-1]
        source = Source(instance_id=leaf.id, is_primary=active_instance(root).id == leaf.id)
        key = f"{snapshot.execution_id}/{effect.id}"
        hooks = performer.hooks(effect.hooks)
        structured = wanted.output_schema is not None
        if hears_stream(hooks) and not structured:
            seen = {"tree": context["tree"], "instance": leaf.id}
            async with stream_listener(hooks, effect.agent, seen) as listen:
                stream = self._stream(effect, key, source, performer, listen)
                result = await self._asked(effect, wanted, key, stream)
                message, calls = answered(leaf.node, result, source, stream)
        else:
            stream = None if structured else self._stream(effect, key, source, performer)
            result = await self._asked(effect, wanted, key, stream)
            message, calls = answered(leaf.node, result, source, stream)
        return Reply(
            payload={"message": settle(message)},
            text=result.content,
            spent=spent_of(result.usage),
            finish_reason=result.finish_reason,
            tool_calls=tuple(settle(call) for call in calls),
        )

    async def _asked(
        self, effect: CallAgent, wanted: ModelRequest, key: str, stream: Stream | None
    ) -> AgentResult:
        emit = stream.update if stream is not None else None
        executor = self.binding.charter.executor
        try:
            if isinstance(executor, StandardExecutor):
                return await self._standard(executor, effect.agent, wanted, key, emit)
            request = AgentRequest(
                input={**effect.input, "node": effect.agent, "settings": dict(wanted.settings)},
                messages=[{"role": "system", "content": wanted.system.text}, *wanted.messages],
                tools=list(wanted.tools),
                idempotency_key=key,
                on_token=emit,
            )
            answer: Any = executor.call(request)
            return as_result(await answer if inspect.isawaitable(answer) else answer, effect.agent)
        except Exception as error:
            if stream is not None:
                stream.error(error)
            raise

    async def _standard(
        self,
        executor: StandardExecutor,
        node: str,
        wanted: ModelRequest,
        key: str,
        emit: Callable[[str], None] | None,
    ) -> AgentResult:
        """The standard call, through litellm."""
        settings = {**model_settings(executor, wanted.settings), **self.model}
        known = repr(sorted(settings.items(), key=lambda item: item[0]))
        client = self._clients.get(known)
        if client is None:
            from flat.agents.litellm import LiteLLMClient  # a second of imports behind it

            client = self._clients[known] = LiteLLMClient(settings, name=node)
        schema = wanted.output_schema
        result: AgentResult = await client.complete(
            chat(wanted, caches=caches(settings)),
            tools=wanted.tools or None,
            response_format=None
            if schema is None
            else {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}},
            on_token=emit,
            idempotency_key=key,
            timeout=executor.timeout,
        )
        return result

    def _stream(
        self,
        effect: CallAgent,
        key: str,
        source: Source,
        performer: Performer,
        listen: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> Stream | None:
        """Who hears the answer while it comes; structured output makes no sense before it is whole."""
        told, id_ = performer.on_token, effect.id
        heard = tuple(one for one in (self.on_stream, listen) if one is not None)
        if not heard and told is None:
            return None
        return Stream(key, source, heard, None if told is None else lambda text: told(id_, text))

    # -- calls --------------------------------------------------------------------------

    async def _call(self, effect: RunTool, snapshot: Identity, performer: Performer) -> Any:
        call = {"id": effect.call_id, "name": effect.tool, "arguments": settle(effect.arguments)}
        context = effect.context
        history = self.history(performer.log, {}, context["at"])
        key = f"{snapshot.execution_id}/{effect.id}"

        async def run() -> Any:
            done = await self.binding.call(
                context["tree"], context["leaf"], call, history=history, effect_id=key
            )
            return done if is_transition(effect.tool) else await self._passed(done, effect, key, performer)

        if effect.timeout is None:
            return settle(await run())
        try:
            return settle(await performer.clock.before(performer.clock.now() + effect.timeout, run))
        except DeadlinePassed:
            text = f"{effect.tool} was stopped: it was not done within {effect.timeout:g} s"
            return {"content": text, "is_error": True, "code": "tool_timeout"}

    async def _command(self, effect: RunTool, snapshot: Identity, performer: Performer) -> Any:
        context = effect.context
        history = self.history(performer.log, {}, len(performer.log))
        key = f"{snapshot.execution_id}/{effect.id}"
        await tell_command(performer.hooks(effect.hooks), context)
        done = await self.binding.command(
            context["tree"], context["invocation"], history=history, effect_id=key
        )
        return settle(await self._passed(done, effect, key, performer))

    # -- states that are owned outside ----------------------------------------------------

    async def _owners(self, effect: RunTool, snapshot: Identity, performer: Performer) -> Any:
        """Meet the owners of what is new, and give them records from outside."""
        given = {"changes": effect.context["external"]}
        key = f"{snapshot.execution_id}/{effect.id}"
        return settle({"changes": [], **(await self._passed(given, effect, key, performer) or {})})

    async def _passed(
        self, outcome: Mapping[str, Any] | None, effect: RunTool, key: str, performer: Performer
    ) -> Mapping[str, Any] | None:
        """An outcome with what the owners of states made of its changes."""
        if outcome is None or not self.binding.external:
            return outcome
        context = effect.context
        async with self._meeting:
            root = self.binding.tree(context["tree"])
            external = self._external
            if external is None:
                external = self._external = ExternalStates(self.binding.charter, root)
            external.root, external.changes, external.closed = root, [], ""
            external.number_from(len(performer.log) << 10)
            try:
                await external.sync()
                changes = [change_from_data(data) for data in outcome.get("changes", ())]
                left = await external.passed(changes, step=context["step"], key=key)
            finally:
                external.closed = OUT_OF_TURN
        return {**outcome, "changes": [change_data(change) for change in left]}

    def telling(
        self, tell: Callable[[Advance], Awaitable[None]] | None, stored: Snapshot | None
    ) -> Callable[[Advance], Awaitable[None]] | None:
        """What is called after each commit: `tell`, and whoever owns states, where a step is among what was stored."""
        if not self.binding.external:
            return tell
        self._steps = None if stored is None else stored.root.context.get("steps")

        async def both(step: Advance) -> None:
            if tell is not None:
                await tell(step)
            steps = step.snapshot.root.context.get("steps")
            new = steps if steps is not self._steps else None
            self._steps = steps
            for record in new or ():
                if self._external is not None:
                    await self._external.notify_step(record)

        return both

    async def close(self) -> None:
        """Let go of the owners of states: the run is over."""
        if self._external is not None:
            external, self._external = self._external, None
            await external.dispose()


async def tell_command(hooks: Any, context: Mapping[str, Any]) -> None:
    """Tell hooks that a command runs: it has code of its own, so theirs only watches."""
    if hooks is None:
        return
    invocation = context["invocation"]
    for one in members(hooks):
        if not overrides(one, "on_action"):
            continue
        seen = {"tree": context["tree"], "invocation": invocation}
        try:
            await settled(call_action(one, "intake", invocation["name"], plain_copy(seen)))
        except Exception:
            log.exception("on_action of %s raised at a command", type(one).__name__)


@dataclass
class Stream:
    """Tells of one answer while it comes."""

    message_id: str
    source: Source
    heard: Sequence[Callable[[Mapping[str, Any]], Any]]
    on_token: Callable[[str], None] | None
    seq: int = 0

    def __post_init__(self) -> None:
        self._tell("message_start", message={"role": "assistant", "items": []})

    def update(self, text: str) -> None:
        if self.on_token is not None:
            self.on_token(text)
        self._tell("message_update", delta={"kind": "text", "contentIndex": 0, "delta": text})

    def end(self, message: Mapping[str, Any]) -> None:
        self._tell("message_end", message=message)

    def error(self, error: Exception) -> None:
        code = {"code": error.code} if isinstance(error, AgentFailed) else {}
        self._tell("message_error", error={"message": str(error), **code})

    def _tell(self, kind: str, **facts: Any) -> None:
        source = {"instanceId": self.source.instance_id, "isPrimary": bool(self.source.is_primary)}
        event = {"type": kind, "messageId": self.message_id, "seq": self.seq, "source": source, **facts}
        for listen in self.heard:
            listen(event)
        self.seq += 1


def answered(
    node: Any, result: AgentResult, source: Source, stream: Stream | None
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """An answer as a message of the log, and the calls in it."""
    thinking, provider = thinking_of(result)
    calls = sound_calls(result.tool_calls)
    shown = [call if call.get("invalid_arguments") is None else {**call, "arguments": {}} for call in calls]
    answer = answer_message(
        node, text_of(result), shown, thinking=thinking, provider_items=provider, source=source
    )
    message = message_data(answer)
    if stream is not None:
        stream.end(message)
    return message, calls


# -- the standard call ------------------------------------------------------------------------


def model_settings(executor: StandardExecutor, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one call as the model client reads them."""
    own = {
        "provider": executor.provider,
        "api_key": executor.api_key,
        "base_url": executor.base_url,
        "timeout": executor.timeout,
        "name": wanted.get("model"),
        "max_tokens": wanted.get("max_tokens"),
        "temperature": wanted.get("temperature"),
    }
    return {key: value for key, value in own.items() if value is not None}


def caches(settings: Mapping[str, Any]) -> bool:
    """Whether the provider keeps what is marked: others do so without marks, or refuse them."""
    return settings.get("provider") == "anthropic" or "claude" in str(settings.get("name"))


def chat(wanted: ModelRequest, *, caches: bool) -> list[dict[str, Any]]:
    """The request's messages. With marks: after what rarely changes of the prompt, and after the last message."""
    messages = [
        {key: value for key, value in message.items() if key != "provider_items"}
        for message in wanted.messages
    ]
    system = wanted.system
    if not caches:
        return [{"role": "system", "content": system.text}, *messages]
    blocks: list[dict[str, Any]] = []
    if system.stable:
        blocks.append({"type": "text", "text": system.stable, "cache_control": dict(CACHED)})
    if system.volatile:
        blocks.append({"type": "text", "text": system.volatile})
    if messages:
        messages[-1] = marked(messages[-1])
    return [{"role": "system", "content": blocks}, *messages]


def marked(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the mark on its last part."""
    content = message.get("content")
    if isinstance(content, str) and content:
        return {**message, "content": [{"type": "text", "text": content, "cache_control": dict(CACHED)}]}
    if isinstance(content, list) and content:
        return {**message, "content": [*content[:-1], {**content[-1], "cache_control": dict(CACHED)}]}
    return dict(message)


def sound_calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls of an answer, each with a name, an object of arguments, and an id that no other one has."""
    found: list[dict[str, Any]] = []
    taken: set[str] = set()
    for number, call in enumerate(calls):
        id_ = call.get("id")
        if not isinstance(id_, str) or not id_:
            id_ = f"call-{number}"
        if id_ in taken:
            id_ = f"{id_}-{number}"
        taken.add(id_)
        sound = {**call, "id": id_, "name": str(call.get("name") or "")}
        if not isinstance(call.get("arguments"), Mapping) and call.get("invalid_arguments") is None:
            sound["invalid_arguments"] = repr(call.get("arguments"))
        found.append(sound)
    return found


def thinking_of(result: AgentResult) -> tuple[Sequence[Any], Sequence[Any]]:
    """The thinking blocks and the provider's own items of an answer."""
    told = {**result.provider_data, **result.metadata}
    blocks = told.get("thinking_blocks")
    choices = getattr(result.raw, "choices", None)
    if blocks is None and choices:
        blocks = getattr(choices[0].message, "thinking_blocks", None)
    return [dict(block) for block in blocks or ()], list(told.get("provider_items") or ())


def text_of(result: AgentResult) -> str | None:
    """What the model said; structured output as JSON, for the node's mapper to read."""
    if result.content is not None or result.output is None:
        return result.content
    from pydantic_core import to_json

    return to_json(result.output).decode()
