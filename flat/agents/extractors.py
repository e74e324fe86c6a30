"""Extractors: pieces of code that read a value out of a model's raw answer, for those who call models themselves.

They take an answer in OpenAI's form (`choices[0].message`), a message, or plain text.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flat.agents.output import extract_json

_THINKING = re.compile(r"<thinking>(.*?)</thinking>", re.DOTALL)
_TRUE = ("true", "1", "yes")


class Extractor(Protocol):
    """Reads something out of an answer."""

    def extract(self, response: Any) -> Any: ...


def message_of(response: Any) -> Any:
    """The message in an answer; the thing itself when it is one."""
    choices = getattr(response, "choices", None)
    return choices[0].message if choices else response


def content_of(response: Any) -> str | None:
    """The text in an answer; texts of several blocks are joined."""
    if response is None or isinstance(response, str):
        return response
    content = getattr(message_of(response), "content", None)
    if isinstance(content, list):
        return "".join(_field(block, "text") or "" for block in content if _field(block, "type") == "text")
    return content


def _field(block: Any, name: str) -> Any:
    return block.get(name) if isinstance(block, Mapping) else getattr(block, name, None)


class FreeExtractor:
    """The text as it is."""

    def extract(self, response: Any) -> str:
        return content_of(response) or ""


class FreeThinkingExtractor:
    """`{thinking, response}`: what the model thought, apart from what it said."""

    def extract(self, response: Any) -> dict[str, Any]:
        said = content_of(response) or ""
        message = message_of(response)
        told = getattr(message, "thinking", None) or getattr(message, "reasoning_content", None)
        if told:
            return {"thinking": told, "response": said}
        blocks = getattr(message, "content", None)
        if isinstance(blocks, list):
            thought = [_field(b, "thinking") or "" for b in blocks if _field(b, "type") == "thinking"]
            return {"thinking": "".join(thought), "response": said}
        thought = [match.strip() for match in _THINKING.findall(said)]
        return {"thinking": "\n".join(thought), "response": _THINKING.sub("", said).strip()}


class StructuredExtractor:
    """The JSON in the text; what is none comes as `{_raw, _error}`."""

    def __init__(self, schema: Any = None) -> None:
        self.schema = schema

    def extract(self, response: Any) -> Any:
        text = content_of(response)
        if text is None:
            return {}
        found = extract_json(text)
        return found[0] if found else {"_raw": text, "_error": "the answer holds no valid JSON"}


class ToolsExtractor:
    """`{tool_calls, content}`, with arguments decoded where they are valid JSON."""

    def extract(self, response: Any) -> dict[str, Any]:
        calls = getattr(message_of(response), "tool_calls", None) or ()
        return {"tool_calls": [self._call(call) for call in calls], "content": content_of(response)}

    def _call(self, call: Any) -> dict[str, Any]:
        arguments = call.function.arguments
        with contextlib.suppress(TypeError, ValueError):  # else as the model wrote them
            arguments = json.loads(arguments)
        function = {"name": call.function.name, "arguments": arguments}
        return {"id": call.id, "type": getattr(call, "type", None) or "function", "function": function}


class RegexExtractor:
    """The first group of a pattern for each field; None when one does not match or does not convert."""

    def __init__(self, patterns: Mapping[str, str], types: Mapping[str, str] | None = None) -> None:
        self._patterns = {name: re.compile(pattern, re.DOTALL) for name, pattern in patterns.items()}
        unknown = [kind for kind in (types or {}).values() if kind not in _CONVERSIONS]
        if unknown:
            raise ValueError(f'unknown type "{unknown[0]}"; known: {", ".join(_CONVERSIONS)}')
        self._types = dict(types or {})

    def extract(self, response: Any) -> dict[str, Any] | None:
        text = content_of(response) or ""
        found: dict[str, Any] = {}
        for name, pattern in self._patterns.items():
            match = pattern.search(text)
            if match is None:
                return None
            try:
                found[name] = _CONVERSIONS[self._types.get(name, "str")](match[1])
            except ValueError:
                return None
        return found


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: text.strip().lower() in _TRUE,
    "json": json.loads,
}
