"""What a stored body looks like, as models, for its JSON Schema. What writes and reads bodies is `flat.core.codec`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from flat.core.codec import FORMAT
from flat.core.snapshot import Status

VALUE_MARK = "flat:value"
Value = Annotated[Any, WithJsonSchema({VALUE_MARK: True})]
Values = dict[str, Value]
ABSENT: Any = None
"""What may be left out, and then means that nothing changed."""
VALUE: dict[str, Any] = {
    "description": 'A stored value: JSON, or another type as `{"$": [name, data]}`. A key of the user\'s that begins '
    "with $ has one more in front.",
    "anyOf": [
        {"type": ["null", "boolean", "number", "string"]},
        {"type": "array", "items": {"$ref": "#/definitions/Value"}},
        {
            "type": "object",
            "if": {"required": ["$"]},
            "then": {
                "additionalProperties": False,
                "properties": {
                    "$": {
                        "description": "The type's name (`blob`: a text kept apart, by its digest), and its data.",
                        "examples": [["datetime", "2026-02-03T00:00:00+00:00"], ["set", [1, 2]]],
                        "type": "array", "items": [{"type": "string"}, {"$ref": "#/definitions/Value"}],
                        "minItems": 2, "maxItems": 2,
                    }
                },
            },
            "else": {"additionalProperties": {"$ref": "#/definitions/Value"}},
        },
    ],
}  # fmt: skip


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InstanceBody(_Body):
    """A live occupant of a node."""

    node: str = Field(description="Where it is.", examples=["ask"])
    op: str = Field(
        description="The op in progress; empty before the node is entered.", examples=["call", ""]
    )
    step: int = Field(description="The number of this visit.", examples=[3])
    context: Values = Field(description="Its data.", examples=[{"topic": "tea"}])
    output: Value = Field(
        description="What the last op gave within this visit.", examples=[{"content": "hi"}]
    )
    local: Value = Field(description="Memory of the op in progress.", examples=[[1, "pause", 1700000000.0]])
    pending: list[str] = Field(description="Effects asked for and not answered.", examples=[["0/3/call"]])
    deadline: float | None = Field(description="When this visit runs out of time.", examples=[1700000000.0])
    parent: str | None = Field(description="The instance above it.", examples=["0"])
    children: list[str] = Field(description="The instances below it.", examples=[["1", "2"]])
    suspended: str | None = Field(description="What it is suspended for.", examples=["approval"])


class ForkedFrom(_Body):
    """The moment that a fork was made of."""

    execution_id: str = Field(description="The original.", examples=["demo"])
    seq: int = Field(description="The commit.", examples=[7])
    step: int = Field(description="The step.", examples=[3])


class BaseBody(_Body):
    """A whole snapshot: the first body of an execution, and a later one now and then."""

    format: Literal[FORMAT] = Field(  # type: ignore[valid-type]
        description="The number of this format.", examples=[FORMAT]
    )
    id: str = Field(description="The execution.", examples=["demo"])
    status: Status = Field(description="How it stands.", examples=["running"])
    steps: int = Field(description="Visits of nodes so far.", examples=[3])
    instances: dict[str, InstanceBody] = Field(
        description="Instances by id; `0` is the first.", examples=[{}]
    )
    spent: Value = Field(description="Calls, tokens and money.", examples=[{"$": ["Spent", {"calls": 1}]}])
    max_steps: int | None = Field(description="Most steps.", examples=[1000])
    max_agent_calls: int | None = Field(description="Most model calls.", examples=[20])
    started_at: float = Field(description="Seconds since the epoch.", examples=[1700000000.0])
    at: float = Field(description="When the last event happened.", examples=[1700000001.5])
    output: Value = Field(description="The result.", examples=[{"n": 3}])
    failure: Value = Field(
        description="Why it failed.", examples=[{"$": ["Failure", {"type": "TimeoutError"}]}]
    )
    reason: Value = Field(description="Why it stopped.", examples=["max_steps (3) reached"])
    parent: str | None = Field(description="The execution that started it.", examples=["demo"])
    depth: int = Field(description="How many executions are above it.", examples=[0])
    log_length: int = Field(description="Rows of the log that belong to it.", examples=[0])
    launched: bool = Field(
        default=False, description="Whether its parent goes on without waiting for it.", examples=[True]
    )
    forked_from: ForkedFrom = Field(
        default=ABSENT,
        description="Only in the first body of a fork.",
        examples=[{"execution_id": "demo", "seq": 7, "step": 3}],
    )


class MappingDelta(_Body):
    """What is new in a mapping."""

    changed: Values = Field(default=ABSENT, alias="c", description="Entries set.", examples=[{"n": 2}])
    appended: dict[str, list[Value]] = Field(
        default=ABSENT,
        alias="+",
        description="Items appended to lists.",
        examples=[{"messages": ["hi"]}],
    )
    removed: list[str] = Field(
        default=ABSENT,
        alias="-",
        description="Keys removed.",
        examples=[["draft"]],
    )


class InstanceDelta(MappingDelta):
    """What is new in an instance; `c`, `+` and `-` are about its context."""

    node: str = Field(default="", alias="n", description="Node.", examples=["ask"])
    op: str = Field(default="", alias="o", description="Op.", examples=["call"])
    step: int = Field(
        default=0, alias="v", description="Visit, where it is not the execution's newest step.", examples=[3]
    )
    output: Value = Field(default=ABSENT, alias="r", description="Output of the last op.", examples=["hi"])
    local: Value = Field(default=ABSENT, alias="l", description="Memory of the op.", examples=[[1]])
    local_delta: MappingDelta = Field(
        default=ABSENT,
        alias="l~",
        description="What is new in a memory that is a mapping.",
        examples=[{"+": {"done": [[0, True, "x"]]}}],
    )
    pending: list[str] = Field(
        default=ABSENT,
        alias="p",
        description="Effects pending; left out for the usual one.",
        examples=[["0/3/call.1"]],
    )
    pending_delta: tuple[list[str], list[str]] = Field(
        default=ABSENT,
        alias="p~",
        description="Effects answered, and asked for.",
        examples=[[["0/3/call.1"], ["0/3/call.2"]]],
    )
    deadline: float | None = Field(
        default=ABSENT, alias="d", description="Deadline.", examples=[1700000000.0]
    )
    kinship: tuple[str | None, list[str], str | None] = Field(
        default=ABSENT,
        alias="k",
        description="Parent, children, and what it is suspended for.",
        examples=[[None, ["1"], None]],
    )


class InstanceBirth(_Body):
    """A new instance."""

    whole: InstanceBody = Field(alias="=", description="All of it.", examples=[{}])


class DeltaBody(InstanceDelta):
    """What differs from the body before. With a single instance its changes stand here, else under `i`."""

    time: int = Field(alias="t", description="Milliseconds since the start.", examples=[1500])
    steps: int = Field(default=0, alias="s", description="Visits of nodes so far.", examples=[4])
    instances: dict[str, InstanceDelta | InstanceBirth | None] = Field(
        default=ABSENT,
        alias="i",
        description="Instances that changed, are new, or (null) are gone.",
        examples=[{"1": None}],
    )
    spent: Value = Field(
        default=ABSENT, alias="u", description="The new totals.", examples=[{"$": ["Spent", {"calls": 2}]}]
    )
    status: tuple[Status, Value] = Field(
        default=ABSENT,
        alias="S",
        description="Status and reason, where it does not simply run.",
        examples=[["done", ""]],
    )
    result: Value = Field(default=ABSENT, alias="r!", description="The result.", examples=[{"n": 3}])
    failure: Value = Field(default=ABSENT, alias="f", description="Why it failed.", examples=[None])
    limits: tuple[int | None, int | None] = Field(
        default=ABSENT,
        alias="m",
        description="Most steps and most model calls.",
        examples=[[1000, None]],
    )
    log_length: int = Field(default=0, alias="L", description="Rows of the log.", examples=[2])
