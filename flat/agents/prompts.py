"""The prompts of an agent, and how they become the messages of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flat.agents.protocol import AgentRequest, Message
from flat.core.template import Template, compile_text
from flat.errors import Location, SpecError

Locate = Callable[[tuple[str, ...]], Location | None]
"""Where in its file a part of a config is written, given the keys that lead to it."""

DEFAULT_SYSTEM = "You are a helpful assistant."

_ROOTS = ("input", "model", "tools", "tools_prompt")


class Prompts:
    """The compiled prompt texts of one agent."""

    def __init__(
        self,
        data: Mapping[str, Any],
        model: Mapping[str, Any],
        locate: Locate | None = None,
        *,
        compat: bool = False,
    ) -> None:
        """With `compat`, what is undefined in a prompt renders as nothing."""

        def compiled(key: str, default: str = "", *more: str) -> Template:
            source = data.get(key)
            return _compile(key, default if source is None else source, (*_ROOTS, *more), locate, compat)

        self._system = compiled("system", DEFAULT_SYSTEM)
        self._user = compiled("user")
        self._suffix = compiled("instruction_suffix")
        self._post = compiled("post_history_instructions", "", "context")
        self._model = dict(model)
        self._says_system = data.get("system") is not None

    def texts(self, request: AgentRequest) -> tuple[str | None, str]:
        """The system prompt, if the agent has one of its own, and the user prompt; for agents without messages."""
        scope: dict[str, Any] = {
            "input": request.input,
            "model": self._model,
            "tools": [],
            "tools_prompt": "",
        }
        system = str(self._system.render(scope)) if self._says_system else None
        return system, self._user_prompt(scope)

    def messages(
        self, request: AgentRequest, tools: Sequence[Any] = (), tools_prompt: str = ""
    ) -> tuple[list[Message], str | None]:
        """The messages to send, and the user prompt as it was rendered for them.

        The system prompt always leads, even when empty or when the history has one. The user prompt ends
        them, unless the call merely continues a history.
        """
        scope: dict[str, Any] = {
            "input": request.input,
            "model": self._model,
            "tools": list(tools),
            "tools_prompt": tools_prompt,
        }
        messages: list[Message] = [{"role": "system", "content": self._system.render(scope)}]
        messages += request.messages or ()
        rendered: str | None = None
        if request.new_turn or not request.messages:
            rendered = self._user_prompt(scope)
            messages.append({"role": "user", "content": rendered})
        last_words = self._post.render({**scope, "context": request.context}).strip()
        return (_with_last_words(messages, last_words) if last_words else messages), rendered

    def _user_prompt(self, scope: Mapping[str, Any]) -> str:
        user, suffix = str(self._user.render(scope)), str(self._suffix.render(scope))
        return f"{user}\n\n{suffix}" if suffix else user


def _compile(key: str, source: Any, roots: Sequence[str], locate: Locate | None, compat: bool) -> Template:
    location = locate((key,)) if locate else None
    if not isinstance(source, str):
        raise SpecError(f"`{key}` is not text but {source!r}", location)
    template = compile_text(source, location, lenient=compat)
    template.check(None if compat else roots)
    return template


def _with_last_words(messages: Sequence[Message], words: str) -> list[Message]:
    """A copy of the messages with instructions put last: the history itself never holds them."""
    body = f"System:\n\n{words}"
    *before, last = messages
    if last["role"] not in ("user", "tool"):
        return [*messages, {"role": "user", "content": body}]
    content = last.get("content")
    extended: Any
    if isinstance(content, list):
        extended = [*content, {"type": "text", "text": f"\n\n{body}" if content else body}]
    else:
        extended = f"{content}\n\n{body}" if content else body
    return [*before, {**last, "content": extended}]
