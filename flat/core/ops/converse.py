"""`tool_loop:` lets an agent call tools until it has an answer.

Theory of operation. The conversation is a list of messages in the context (`CHAIN`), which only grows, so that
each message is stored once; hooks and actions may edit it between two visits, and a later visit of the same
state with the same agent goes on with it. `local` says what is being waited for (`stage`) and counts. Every
model call, tool and hook is an effect of its own: a run that dies goes on at the very tool where it stopped.

    model ──text──> end                         stages: model, calls, tool, result, last
      │ ^
      tool calls ──> calls (hook) ──> tool ──> result (hook) ──> next tool … ──> model

A tool that fails, hangs past its time, is skipped or is not allowed is an answer that the model reads. Limits end
the loop with the reason in `_tool_loop_stop`; when there is no text yet, the model is asked for one, without tools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from flat.core.effects import CallAgent, RunHook, RunTool
from flat.core.events import Done, Failed, Reply, Told
from flat.core.grown import Grown
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.ops.branch import NEXT, Arm
from flat.core.template import CompiledMapping, Template
from flat.errors import ExpressionError

CHAIN = "_tool_loop_chain"
CHAIN_OF = ("_tool_loop_chain_state", "_tool_loop_chain_agent")
ABORT, STOP, SKIP, STEER = "_abort_tool_loop", "_tool_loop_stop", "_skip_tools", "_steering_messages"
LAST_WORDS = (
    "[System: tool use limit reached. Provide your final response now using the information gathered so far.]"
)
SKIPPED = "Tool '{}' was skipped by policy."
REFUSED = "Tool '{}' is not allowed."
NOT_RUN = "Tool '{}' was not run: the limit of tool calls is reached."
LEFT = "Tool '{}' was not run: the conversation was left before."


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrails:
    """Limits of a loop; a template or a number. Zero means no limit."""

    max_turns: Any = 0
    max_tool_calls: Any = 0
    tool_timeout: Any = 0
    """Seconds for one tool."""
    total_timeout: Any = 0
    """Seconds for the whole loop."""
    max_cost: Any = 0
    """US dollars."""
    allowed: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Converse:
    agent: str
    input: CompiledMapping | None = None
    session_id: Template | None = None
    limits: Guardrails = Guardrails()
    arms: tuple[Arm, ...] = ()
    """The state's conditional transitions: one that holds after a tool ends the loop."""
    on_calls: bool = True
    """True when a hook looks at the tool calls before they run."""
    on_result: bool = True
    """True when a hook looks at each tool's result."""
    in_doubt: str = "retry"
    key: str = "converse"
    kind: Literal["converse"] = "converse"

    # -- an event comes in -------------------------------------------------------------

    def start(self, here: View) -> Answer:
        if here.local is not None:
            return self._again(here, here.context, here.local)
        context = {k: v for k, v in here.context.items() if k not in (ABORT, STOP)}
        mine = tuple(context.get(k) for k in CHAIN_OF) == (here.node, self.agent)
        if not mine or not isinstance(context.get(CHAIN), list):
            context[CHAIN] = []
        context |= dict(zip(CHAIN_OF, (here.node, self.agent), strict=True))
        local = {
            "limits": self._limits(here),
            "stage": "model",
            "turns": 0,
            "calls": 0,
            "cost": 0.0,
            "text": None,
            "begun": here.at,
            "first": not context[CHAIN],
        }
        return self._model(here, context, local)

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return self._failed(here, event)
        match here.local["stage"]:
            case "model":
                return self._replied(here, event.value)
            case "calls":
                return self._allowed(here, event.value, here.local)
            case "tool":
                return self._told(here, event.value)
            case "result":
                return self._after_tool(here, event.value, here.local)
            case _:
                return self._last_said(here, event.value)

    def _failed(self, here: View, event: Failed) -> Answer:
        if here.local["stage"] == "last":  # the loop has ended already; what there is has to do
            return self._end(here, here.context, here.local)
        if here.local["stage"] == "tool" and "InDoubt" in (event.failure.type, *event.failure.names):
            return self._told(here, Told(content=event.failure.message, is_error=True))
        return Raise(event.failure)

    # -- the model ------------------------------------------------------------------------

    def _model(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> Answer:
        """Ask the model, unless a limit says that the loop is over."""
        limits = local["limits"]
        if limits["total_timeout"] and here.at - local["begun"] >= limits["total_timeout"]:
            return self._stop(here, context, local, "timeout")
        if limits["max_turns"] and local["turns"] >= limits["max_turns"]:
            return self._stop(here, context, local, "max_turns")
        if limits["max_cost"] and local["cost"] >= limits["max_cost"]:
            return self._stop(here, context, local, "cost_limit")
        local = {**local, "stage": "model"}
        return Block((self._ask(here, context, local),), local, context)

    def _ask(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> CallAgent:
        scope = {**here.scope, "context": context, "input": context}
        session = self.session_id.render(scope) if self.session_id is not None else None
        first = local["first"] and not local["turns"]
        last = local["stage"] == "last"
        return CallAgent(
            here.effect_id(self.key, "last" if last else f"model{local['turns']}"),
            here.node,
            self.agent,
            self.input.render(scope) if self.input is not None and first else {},
            context,
            here.hooks,
            str(session).strip() or None if session is not None else None,
            None if first else context[CHAIN],
            "withheld" if last else "offered",
            here.deadline,
            self.in_doubt,
        )

    def _replied(self, here: View, reply: Reply) -> Answer:
        here.spend(reply.spent)
        local = {
            **here.local,
            "turns": here.local["turns"] + 1,
            "cost": here.local["cost"] + reply.spent.cost,
            "text": reply.text,
        }
        said: list[Any] = []
        if here.local["first"] and not here.local["turns"] and reply.prompt:
            said.append({"role": "user", "content": reply.prompt})
        calling = reply.finish_reason == "tool_use"
        said.append(_assistant(reply, without_calls=not calling))
        context = self._counted(_said(here.context, *said), local)
        if not calling:
            return self._end(here, context, {**local, "stop": "complete"})
        calls = [dict(call) for call in reply.tool_calls]
        most = local["limits"]["max_tool_calls"]
        if most and local["calls"] + len(calls) > most:
            # Providers refuse a conversation in which a tool call has no answer.
            context = _said(context, *(_answer(call, NOT_RUN.format(_name(call))) for call in calls))
            return self._stop(here, context, local, "max_tool_calls")
        local |= {"queue": calls, "skip": []}
        if self.on_calls and calls:
            return self._hook(here, context, {**local, "stage": "calls"}, "tool_calls", {"calls": calls})
        return self._allowed(here, context, local)

    # -- tools --------------------------------------------------------------------------------

    def _allowed(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> Answer:
        if context.get(ABORT):
            return self._end(here, context, {**local, "stop": "aborted"})
        if SKIP in context:
            local = {**local, "skip": list(context[SKIP] or ())}
            context = {k: v for k, v in context.items() if k != SKIP}
        return self._next_tool(here, context, local)

    def _next_tool(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> Answer:
        """Run the first tool in the queue that may run; answer for those that may not."""
        queue = list(local["queue"])
        while queue:
            refused = self._refusal(queue[0], local["skip"])
            if refused is None:
                local = {**local, "queue": queue, "stage": "tool"}
                return Block((self._tool(here, context, local),), local, context)
            context = _said(context, _answer(queue.pop(0), refused))
        if STEER in context:
            steering = context[STEER] or []
            context = {k: v for k, v in context.items() if k != STEER}
            context = _said(context, *([steering] if isinstance(steering, str | Mapping) else steering))
        return self._model(here, context, {**local, "queue": []})

    def _refusal(self, call: Mapping[str, Any], skip: Sequence[str]) -> str | None:
        name, limits = _name(call), self.limits
        if name in skip or call.get("id") in skip:
            return SKIPPED.format(name)
        if name in limits.denied or (limits.allowed is not None and name not in limits.allowed):
            return REFUSED.format(name)
        return None

    def _tool(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> RunTool:
        call = local["queue"][0]
        return RunTool(
            here.effect_id(self.key, f"tool{local['calls']}"),
            here.node,
            _name(call),
            call.get("arguments", {}),
            str(call.get("id", "")),
            context,
            here.hooks,
            self.agent,
            local["limits"]["tool_timeout"] or None,
            here.deadline,
            self.in_doubt,
        )

    def _told(self, here: View, told: Told) -> Answer:
        call, *rest = here.local["queue"]
        calls = here.local["calls"] + 1
        local = {**here.local, "queue": rest, "calls": calls, "answered": [call, told.is_error]}
        context = self._counted(_said(here.context, _answer(call, told.content)), local)
        if self.on_result:
            return self._hook(
                here, context, {**local, "stage": "result"}, "tool_result", _result(context, local)
            )
        return self._after_tool(here, context, local)

    def _after_tool(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> Answer:
        if context.get(ABORT):
            return self._end(here, context, {**local, "stop": "aborted"})
        scope = {**here.scope, "context": context, "input": context}
        for condition, target in self.arms:
            if condition is not None and condition.test(scope, here.at):
                return self._end(here, {**context, NEXT: target}, {**local, "stop": "transition"})
        return self._next_tool(here, context, local)

    def _hook(
        self,
        here: View,
        context: Mapping[str, Any],
        local: Mapping[str, Any],
        point: str,
        arguments: Mapping[str, Any],
    ) -> Answer:
        effect_id = here.effect_id(self.key, f"{point}{local['turns']}-{local['calls']}")
        hook = RunHook(effect_id, here.node, point, here.hooks, context, arguments, here.deadline)
        return Block((hook,), local, context)

    # -- the end ----------------------------------------------------------------------------------

    def _stop(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any], reason: str) -> Answer:
        """A limit is reached: the last word is the model's, if it has said nothing yet."""
        local = {**local, "stop": reason}
        if (local["text"] or "").strip():
            return self._end(here, context, local)
        context = _said(context, {"role": "user", "content": LAST_WORDS})
        local |= {"stage": "last"}
        return Block((self._ask(here, context, local),), local, context)

    def _last_said(self, here: View, reply: Reply) -> Answer:
        here.spend(reply.spent)
        if not (reply.text or "").strip():
            return self._end(here, here.context, here.local)
        context = _said(here.context, _assistant(reply, without_calls=True))
        return self._end(here, context, {**here.local, "text": reply.text})

    def _end(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> Answer:
        stop = local["stop"]
        # A later visit goes on with this conversation, in which every tool call needs an answer.
        context = _said(
            context, *(_answer(call, LEFT.format(_name(call))) for call in local.get("queue", ()))
        )
        output = {
            "content": local["text"],
            "_tool_calls_count": local["calls"],
            "_tool_loop_turns": local["turns"],
            "_tool_loop_cost": local["cost"],
            "_tool_loop_stop": stop,
        }
        context = self._counted(context, local)
        quiet = stop in ("complete", "transition")
        return Next(output=output, context=context if quiet else {**context, STOP: stop})

    def _again(self, here: View, context: Mapping[str, Any], local: Mapping[str, Any]) -> Answer:
        """After a restart: ask once more for the one thing that has no answer."""
        match local["stage"]:
            case "tool":
                return Block((self._tool(here, context, local),), local)
            case "calls":
                return self._hook(here, context, local, "tool_calls", {"calls": local["queue"]})
            case "result":
                return self._hook(here, context, local, "tool_result", _result(context, local))
            case _:
                return Block((self._ask(here, context, local),), local)

    # -- small parts --------------------------------------------------------------------------------

    def _limits(self, here: View) -> dict[str, float]:
        limits = self.limits
        return {
            name: _number(getattr(limits, name), name, here)
            for name in ("max_turns", "max_tool_calls", "tool_timeout", "total_timeout", "max_cost")
        }

    @staticmethod
    def _counted(context: Mapping[str, Any], local: Mapping[str, Any]) -> dict[str, Any]:
        """What hooks and conditions may read of the loop."""
        return {
            **context,
            "_tool_loop_turns": local["turns"],
            "_tool_loop_cost": local["cost"],
            "_tool_calls_count": local["calls"],
            "_tool_loop_content": local["text"],
        }


def _said(context: Mapping[str, Any], *messages: Any) -> dict[str, Any]:
    """The context with more messages in its conversation; a bare text is the user's."""
    more = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    chain = context.get(CHAIN)
    return {**context, CHAIN: Grown(chain if isinstance(chain, list) else [], more)}


def _assistant(reply: Reply, *, without_calls: bool = False) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or ""}
    if reply.tool_calls and not without_calls:
        message["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": _name(call), "arguments": _encoded(call.get("arguments", {}))},
            }
            for call in reply.tool_calls
        ]
    return message


def _answer(call: Mapping[str, Any], content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.get("id"), "content": content}


def _result(context: Mapping[str, Any], local: Mapping[str, Any]) -> dict[str, Any]:
    """What a hook is told of the tool that was answered last."""
    call, is_error = local["answered"]
    result = {
        "tool_call_id": call.get("id"),
        "name": _name(call),
        "arguments": call.get("arguments", {}),
        "content": context[CHAIN][-1]["content"],
        "is_error": is_error,
    }
    return {"result": result}


def _name(call: Mapping[str, Any]) -> str:
    return str(call.get("name") or call.get("tool") or "")


def _encoded(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()


def _number(limit: Any, name: str, here: View) -> float:
    value = limit.render(here.scope) if isinstance(limit, Template) else limit
    if value is None or value == "":
        return 0
    try:
        number = float(value)
        if math.isfinite(number):
            return max(number, 0)  # below zero is no limit either
        raise ValueError(name)
    except (TypeError, ValueError, OverflowError):
        said = f"{name} should be a number, and is {value!r}"
        raise limit.error(said) if isinstance(limit, Template) else ExpressionError(said) from None
