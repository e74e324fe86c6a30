"""What the effects of a tree do: a leaf's model call, a call that its model asked for, a command.

The tree is in the effect, as it stood when the effect was asked for; the messages are the performer's log. The
model call goes to whatever the charter names as its executor: anything that answers agent requests, or the settings
of the standard call, which is made through litellm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from flat.agents.executor_result import as_result
from flat.agents.protocol import AgentRequest, AgentResult
from flat.core.advance import Identity
from flat.core.effects import CallAgent, RunTool
from flat.core.events import Reply
from flat.drivers.clock import DeadlinePassed
from flat.drivers.draft import settle
from flat.drivers.perform import Performer, spent_of
from flat.errors import AgentFailed
from flat.tree.executor import StandardExecutor
from flat.tree.instance import active_instance, path_to
from flat.tree.lower import ModelRequest, TreeBinding
from flat.tree.messages import Message, Source, message_data, message_from_data
from flat.tree.request import answer_message

CACHED: Mapping[str, Any] = {"type": "ephemeral"}


class Tracer(Protocol):
    """Watches spans of work; whatever it does, nothing changes."""

    def span(self, name: str, **attributes: Any) -> AbstractContextManager[Any]: ...


@dataclass
class TreeCalls:
    """Performs the effects of one tree execution."""

    binding: TreeBinding
    on_stream: Callable[[Mapping[str, Any]], Any] | None = None
    """Called with `message_start`, `message_update`, `message_end` and `message_error` events."""
    tracer: Tracer | None = None
    _read: list[Message] = field(default_factory=list)
    """The log so far, read once: a log only grows."""
    _clients: dict[str, Any] = field(default_factory=dict)

    async def perform(self, effect: CallAgent | RunTool, snapshot: Identity, performer: Performer) -> Any:
        with self._span(effect):
            if isinstance(effect, CallAgent):
                return await self._think(effect, snapshot, performer)
            if "invocation" in effect.context:
                return await self._command(effect, snapshot, performer)
            return await self._call(effect, snapshot, performer)

    def _span(self, effect: CallAgent | RunTool) -> AbstractContextManager[Any]:
        if self.tracer is None:
            return nullcontext()
        name = f"model {effect.agent}" if isinstance(effect, CallAgent) else f"tool {effect.tool}"
        return self.tracer.span(name, effect_id=effect.id)

    def history(self, log: Sequence[Any], live: Mapping[str, Any], until: int) -> list[Message]:
        """The messages up to a place in the log; ephemeral ones of this turn with what they show."""
        for data in log[len(self._read) : until]:
            self._read.append(message_from_data(data))
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
        )
        root = self.binding.tree(context["tree"])
        leaf = path_to(root, facts["leaf"])[-1]
        source = Source(instance_id=leaf.id, is_primary=active_instance(root).id == leaf.id)
        key = f"{snapshot.execution_id}/{effect.id}"
        stream = self._stream(effect, key, source, performer, structured=wanted.output_schema is not None)
        result = await self._asked(effect, wanted, key, stream)
        thinking, provider = thinking_of(result)
        message = message_data(
            answer_message(
                leaf.node,
                text_of(result),
                [call for call in result.tool_calls if call.get("invalid_arguments") is None]
                + [
                    {**call, "arguments": {}}
                    for call in result.tool_calls
                    if call.get("invalid_arguments") is not None
                ],
                thinking=thinking,
                provider_items=provider,
                source=source,
            )
        )
        if stream is not None:
            stream.end(message)
        return Reply(
            payload={"message": settle(message)},
            text=result.content,
            spent=spent_of(result.usage),
            finish_reason=result.finish_reason,
            tool_calls=tuple(settle(dict(call)) for call in result.tool_calls),
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
        settings = model_settings(executor, wanted)
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
        self, effect: CallAgent, key: str, source: Source, performer: Performer, *, structured: bool
    ) -> Stream | None:
        """Who hears the answer while it comes; structured output makes no sense before it is whole."""
        told = performer.on_token
        if structured or (self.on_stream is None and told is None):
            return None
        id_ = effect.id
        return Stream(key, source, self.on_stream, None if told is None else lambda text: told(id_, text))

    # -- calls --------------------------------------------------------------------------

    async def _call(self, effect: RunTool, snapshot: Identity, performer: Performer) -> Any:
        call = {"id": effect.call_id, "name": effect.tool, "arguments": settle(effect.arguments)}
        context = effect.context
        history = self.history(performer.log, {}, context["at"])
        key = f"{snapshot.execution_id}/{effect.id}"

        async def run() -> Any:
            return await self.binding.call(
                context["tree"], context["leaf"], call, history=history, effect_id=key
            )

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
        return settle(
            await self.binding.command(context["tree"], context["invocation"], history=history, effect_id=key)
        )


@dataclass
class Stream:
    """Tells of one answer while it comes."""

    message_id: str
    source: Source
    on_stream: Callable[[Mapping[str, Any]], Any] | None
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
        if self.on_stream is not None:
            source = {"instanceId": self.source.instance_id, "isPrimary": bool(self.source.is_primary)}
            self.on_stream(
                {"type": kind, "messageId": self.message_id, "seq": self.seq, "source": source, **facts}
            )
        self.seq += 1


# -- the standard call ------------------------------------------------------------------------


def model_settings(executor: StandardExecutor, wanted: ModelRequest) -> dict[str, Any]:
    """The settings of one call as the model client reads them."""
    own = {
        "provider": executor.provider,
        "api_key": executor.api_key,
        "base_url": executor.base_url,
        "timeout": executor.timeout,
        "name": wanted.settings.get("model"),
        "max_tokens": wanted.settings.get("max_tokens"),
        "temperature": wanted.settings.get("temperature"),
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
