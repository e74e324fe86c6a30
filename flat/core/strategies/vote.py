"""Ask again and again until one answer has enough votes: first to reach `k_margin` wins.

After "Solving a Million-Step LLM Task with Zero Errors" (Meyerson et al., 2025): answers that are malformed, invalid
or too long are red flags, and count for nothing. Equal answers are those with the same JSON (keys sorted). When a call
fails as every further one would, no more are made, and the answers so far decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flat.core.events import Done, Failed, Reply
from flat.core.failure import Failure, is_certain
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.strategies.asking import Asking

METRICS = "_mdap_metrics"
"""Context key of what the last vote took."""
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A field that is read out of the answer's text: group 1 of a pattern."""

    field: str
    pattern: str
    type: str = "str"
    """`int`, `json`, or text."""

    def read(self, text: str) -> Any:
        """The value. Raises ValueError when the text does not hold it."""
        found = re.search(self.pattern, text, re.DOTALL)
        if found is None:
            raise ValueError(f"no {self.field}")
        value = found.group(1)
        return int(value) if self.type == "int" else json.loads(value) if self.type == "json" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """`local` is `{"used": calls so far, "votes": {JSON: count}, "flags": {reason: count}}`."""

    k_margin: int = 3
    max_candidates: int = 10
    max_response_tokens: int | None = None
    parsing: tuple[Parsed, ...] = ()
    schema: Mapping[str, Any] | None = None
    kind: Literal["vote"] = "vote"

    def start(self, call: Asking, here: View) -> Answer:
        local = here.local or {"used": 0, "votes": {}, "flags": {}}
        return Block((call.ask(here, str(local["used"])),), local)

    def resume(self, call: Asking, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            if here.deadline is not None and here.at >= here.deadline:
                return Raise(event.failure)
            flag, key = "call_failed", ""
        else:
            reply: Reply = event.value
            here.spend(reply.spent)
            flag, key = self._vote(reply)
        local = here.local
        votes, flags = local["votes"], local["flags"]
        if flag:
            flags = {**flags, flag: flags.get(flag, 0) + 1}
        else:
            votes = {**votes, key: votes.get(key, 0) + 1}
        local = {"used": local["used"] + 1, "votes": votes, "flags": flags}
        if not flag and votes[key] >= self.k_margin:
            return self._won(here, key, local)
        hopeless = isinstance(event, Failed) and is_certain(event.failure)
        if local["used"] < self.max_candidates and not hopeless:
            return Block((call.ask(here, str(local["used"])),), local)
        if votes:
            return self._won(here, max(votes, key=votes.__getitem__), local)
        return Raise(event.failure if isinstance(event, Failed) else _undecided(local))

    def _vote(self, reply: Reply) -> tuple[str, str]:
        """The red flag, or the candidate's key."""
        candidate = self._candidate(reply)
        if candidate is None:
            return "format_error", ""
        if self.schema is not None and not _valid(candidate, self.schema):
            return "validation_failed", ""
        key = json.dumps(candidate, sort_keys=True)
        length = len(reply.text or key) // CHARACTERS_PER_TOKEN
        if self.max_response_tokens and length > self.max_response_tokens:
            return "length_exceeded", ""
        return "", key

    def _candidate(self, reply: Reply) -> Any:
        text = reply.text or ""
        if self.parsing:
            try:
                return {parsed.field: parsed.read(text) for parsed in self.parsing}
            except ValueError:
                return None
        if reply.payload == {"content": reply.text}:
            return reply.payload if text else None
        return reply.payload or None

    def _won(self, here: View, key: str, local: Mapping[str, Any]) -> Answer:
        metrics = {
            "total_samples": local["used"],
            "total_red_flags": sum(local["flags"].values()),
            "red_flags_by_reason": local["flags"],
            "votes": max(local["votes"].values()),
        }
        return Next(output=json.loads(key), context={**here.context, METRICS: metrics})


def _valid(candidate: Any, schema: Mapping[str, Any]) -> bool:
    from jsonschema import Draft202012Validator  # loaded when somebody votes with a schema

    return bool(Draft202012Validator(schema).is_valid(candidate))


def _undecided(local: Mapping[str, Any]) -> Failure:
    reasons = ", ".join(f"{count} × {reason}" for reason, count in local["flags"].items())
    return Failure(
        type="VotingFailed", message=f"none of {local['used']} answers could be counted: {reasons}"
    )
