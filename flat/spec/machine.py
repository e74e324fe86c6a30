"""The models of machine files: one for the 2.5.0 shape and the 4.x shape, told apart by what is there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from flat.spec.agent import AgentFile, TypedAgent
from flat.spec.base import SPEC_VERSION, Closed, Metadata, Number, Open, Seconds, Version, by_shape, shape


class HooksCall(Closed):
    """Hooks by their registered name, with arguments for the factory."""

    name: str = Field(description="The registered name.", examples=["logging"])
    args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the factory.", examples=[{"level": "INFO"}]
    )


NamedHooks = Annotated[Annotated[str, Tag("text")] | Annotated[HooksCall, Tag("mapping")], by_shape]
HooksRef = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[HooksCall, Tag("mapping")]
    | Annotated[list[NamedHooks], Tag("list")],
    by_shape,
]


def hooks_calls(ref: HooksRef | None) -> tuple[HooksCall, ...]:
    """A reference to hooks in its longest form: a sequence of names with arguments."""
    if ref is None:
        return ()
    entries = ref if isinstance(ref, list) else [ref]
    return tuple(HooksCall(name=e) if isinstance(e, str) else e for e in entries)


ConditionText = Annotated[
    Annotated[str, Tag("text")] | Annotated[bool, Tag("flag")],
    Discriminator(lambda value: "flag" if isinstance(value, bool) else "text"),
]


class Transition(Closed):
    """Where to go, and when. The first entry whose condition holds is taken."""

    condition: ConditionText | None = Field(
        None, description="When to go; always, when absent.", examples=["context.score >= 8"]
    )
    to: str = Field(min_length=1, description="The next state.", examples=["done"])


class MachineInput(Closed):
    """A child machine with input of its own."""

    name: str = Field(description="A key of `machines`.", examples=["summarise"])
    input: dict[str, Any] = Field(
        default_factory=dict, description="Merged over the shared input.", examples=[{"style": "short"}]
    )


class DefaultExecution(Closed):
    """One call."""

    type: Literal["default"] = Field("default", description="One call.", examples=["default"])


class RetryExecution(Closed):
    """Call again when it fails in a way that may pass."""

    type: Literal["retry"] = Field(description="Call again after a failure.", examples=["retry"])
    backoffs: list[Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: [2.0, 8.0, 16.0, 35.0],
        description="Seconds before each further attempt.",
        examples=[[2, 8, 16, 35]],
    )
    jitter: float = Field(0.1, ge=0, description="Random part of a delay, as a fraction.", examples=[0.1])
    retry_on_empty: bool = Field(
        False, description="Whether an empty answer counts as a failure.", examples=[True]
    )


class ParallelExecution(Closed):
    """Several calls at once, all answers kept."""

    type: Literal["parallel"] = Field(description="Several calls at once.", examples=["parallel"])
    n_samples: int = Field(3, ge=1, description="How many calls.", examples=[3])


class VotingExecution(Closed):
    """Call until one answer leads the vote."""

    type: Literal["mdap_voting"] = Field(
        description="Call until one answer leads the vote.", examples=["mdap_voting"]
    )
    k_margin: int = Field(3, ge=1, description="Votes that win.", examples=[3])
    max_candidates: int = Field(10, ge=1, description="Most calls.", examples=[10])
    max_response_tokens: int | None = Field(
        None, ge=1, description="Longer answers are rejected.", examples=[750]
    )


def _execution_type(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type") or "default")
    return str(getattr(value, "type", ""))


Execution = Annotated[
    Annotated[DefaultExecution, Tag("default")]
    | Annotated[RetryExecution, Tag("retry")]
    | Annotated[ParallelExecution, Tag("parallel")]
    | Annotated[VotingExecution, Tag("mdap_voting")],
    Discriminator(_execution_type),
]


class ToolLoop(Closed):
    """Limits of a tool loop. Zero means no limit."""

    max_tool_calls: Number | None = Field(None, description="Most tool calls.", examples=[50])
    max_turns: Number | None = Field(None, description="Most model calls.", examples=[20])
    tool_timeout: Number | None = Field(None, description="Seconds for one tool call.", examples=[30])
    total_timeout: Number | None = Field(None, description="Seconds for the whole loop.", examples=[600])
    max_cost: Number | None = Field(None, description="Most money, in dollars.", examples=[0.5])
    allowed_tools: list[str] | None = Field(
        None, description="Only these tools may be called.", examples=[["search"]]
    )
    denied_tools: list[str] | None = Field(
        None, description="These tools may not be called.", examples=[["delete_file"]]
    )


ToolLoopRef = Annotated[
    Annotated[bool, Tag("flag")] | Annotated[ToolLoop, Tag("mapping")],
    Discriminator(lambda v: "mapping" if shape(v) == "mapping" else "flag"),
]
Names = Annotated[Annotated[str, Tag("text")] | Annotated[list[str], Tag("list")], by_shape]
Machines = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[
        list[Annotated[Annotated[str, Tag("text")] | Annotated[MachineInput, Tag("mapping")], by_shape]],
        Tag("list"),
    ],
    by_shape,
]
OnError = Annotated[Annotated[str, Tag("text")] | Annotated[dict[str, str], Tag("mapping")], by_shape]


InDoubt = Annotated[str, Field(pattern=r"^(retry|ask|fail|verify:[A-Za-z_][A-Za-z0-9_.-]*)$")]


class State(Closed):
    """One state. What is there runs in this order: wait_for, action, launch, machine or foreach, agent."""

    type: Literal["initial", "final"] | None = Field(
        None, description="Where a run begins or ends.", examples=["initial", "final"]
    )
    agent: str | None = Field(None, description="A key of `agents` to call.", examples=["writer"])
    machine: Machines | None = Field(
        None, description="Child machines to run and wait for.", examples=["child", ["a", "b"]]
    )
    foreach: str | None = Field(
        None, description="The list to run `machine` over.", examples=["{{ context.items }}"]
    )
    as_: str = Field("item", alias="as", description="What `foreach` calls an item.", examples=["doc"])
    key: str | None = Field(
        None, description="A template: results become a mapping by this key.", examples=["{{ item.id }}"]
    )
    mode: Literal["settled", "any"] = Field(
        "settled", description="Wait for all children, or for the first success.", examples=["any"]
    )
    timeout: Seconds | None = Field(
        None, description="Seconds the state may take; 0 means no limit.", examples=[30]
    )
    launch: Names | None = Field(
        None, description="Child machines to start without waiting.", examples=["audit"]
    )
    launch_input: dict[str, Any] = Field(
        default_factory=dict, description="Input of what is launched.", examples=[{"id": "context.id"}]
    )
    action: str | None = Field(None, description="A registered action to run.", examples=["append_char"])
    hooks: HooksRef | None = Field(None, description="Hooks of this state.", examples=["logging"])
    wait_for: str | None = Field(
        None,
        description="Channel of the signal to wait for, a template.",
        examples=["approval/{{ input.id }}"],
    )
    input: dict[str, Any] = Field(
        default_factory=dict,
        description="Input of the agent or machine.",
        examples=[{"text": "context.text"}],
    )
    output_to_context: dict[str, Any] = Field(
        default_factory=dict,
        description="What is kept of the output, in order.",
        examples=[{"answer": "output.content"}],
    )
    output: dict[str, Any] = Field(
        default_factory=dict,
        description="The machine's result, in a final state.",
        examples=[{"answer": "context.answer"}],
    )
    execution: Execution | None = Field(
        None, description="How often and how the agent is called.", examples=[{"type": "retry"}]
    )
    tool_loop: ToolLoopRef | None = Field(
        None, description="Let the agent call tools until it is done.", examples=[True, {"max_turns": 20}]
    )
    sampling: Literal["single", "multi"] | None = Field(
        None, description="Accepted, without effect.", examples=["single"]
    )
    in_doubt: InDoubt | None = Field(
        None,
        description="What to do on resume with a call that began and has no recorded end.",
        examples=["retry", "ask", "fail"],
    )
    session_id: str | None = Field(
        None, description="A template: calls with one id share a session.", examples=["{{ context.id }}"]
    )
    on_error: OnError | None = Field(
        None,
        description="The state to go to after an error; by the error's name, or `default`.",
        examples=["failed", {"TimeoutError": "again", "default": "failed"}],
    )
    transitions: list[Transition] = Field(
        default_factory=list, description="Where to go next.", examples=[[{"to": "done"}]]
    )

    @property
    def machine_inputs(self) -> tuple[MachineInput, ...]:
        """The child machines in their longest form."""
        entries = [self.machine] if isinstance(self.machine, str) else self.machine or []
        return tuple(MachineInput(name=e) if isinstance(e, str) else e for e in entries)

    @property
    def launch_names(self) -> tuple[str, ...]:
        """The launched machines as a sequence."""
        return (self.launch,) if isinstance(self.launch, str) else tuple(self.launch or ())

    @property
    def loops(self) -> bool:
        """Whether the agent runs as a tool loop; an empty mapping of limits does not count."""
        return bool(
            self.tool_loop.model_fields_set if isinstance(self.tool_loop, ToolLoop) else self.tool_loop
        )

    @property
    def error_targets(self) -> dict[str, str]:
        """`on_error` as a mapping from an error's name (or `default`) to a state."""
        if isinstance(self.on_error, str):
            return {"default": self.on_error} if self.on_error else {}
        return dict(self.on_error or {})


class Backends(Open):
    """Which storage and coordination a machine asks for."""

    persistence: str | None = Field(None, description="Where executions are kept.", examples=["sqlite"])
    locking: str | None = Field(None, description="How one process owns an execution.", examples=["sqlite"])
    results: str | None = Field(None, description="Where results of children go.", examples=["memory"])
    registration: str | None = Field(None, description="Where workers register.", examples=["sqlite"])
    work: str | None = Field(None, description="Where work waits.", examples=["sqlite"])
    signal: str | None = Field(None, description="Where signals wait.", examples=["sqlite"])
    trigger: str | None = Field(None, description="What wakes a dispatcher.", examples=["file"])
    sqlite_path: str | None = Field(None, description="The database file.", examples=["flat.db"])
    trigger_path: str | None = Field(None, description="Folder of trigger files.", examples=["/tmp/flat"])
    redis_url: str | None = Field(
        None, description="Where `redis` is.", examples=["redis://localhost:6379/0"]
    )
    postgres_url: str | None = Field(
        None, description="Where `postgres` is.", examples=["postgresql://localhost/flat"]
    )
    consul_url: str | None = Field(
        None, description="Where `consul` is.", examples=["consul://127.0.0.1:8500/flat"]
    )
    s3_url: str | None = Field(None, description="Where `s3` is.", examples=["s3://bucket/folder"])
    dynamodb_table: str | None = Field(None, description="Table name.", examples=["flat"])
    aws_region: str | None = Field(None, description="Region.", examples=["eu-west-1"])


class Settings(Open):
    """Settings of a machine. Keys that are not listed are kept for adapters."""

    max_steps: int | None = Field(None, ge=0, description="Most steps of one execution.", examples=[100])
    max_depth: int | None = Field(None, ge=0, description="Deepest nesting of machines.", examples=[5])
    max_concurrency: int | None = Field(
        None, ge=1, description="Most children of one state that run at the same time (100).", examples=[10]
    )
    parallel_fallback: Literal["sequential", "error"] | None = Field(
        None, description="What to do where nothing can run in parallel.", examples=["sequential"]
    )
    backends: Backends | None = Field(
        None, description="Storage and coordination.", examples=[{"persistence": "sqlite"}]
    )
    agent_runners: dict[str, Any] | None = Field(
        None, description="Settings by adapter.", examples=[{"claude_code": {"model": "opus"}}]
    )
    compat: bool = Field(
        False, description="Turn mistakes that upstream passes over into warnings.", examples=[True]
    )
    in_doubt: InDoubt | None = Field(
        None,
        description="What to do on resume with a call that began and has no recorded end (`retry`).",
        examples=["retry", "ask", "fail"],
    )
    native_types: bool = Field(
        False, description="A field that is one whole template keeps its value's type.", examples=[True]
    )

    @field_validator("compat", mode="before")
    @classmethod
    def _version_is_yes(cls, value: Any) -> Any:
        """`compat: 4.2` names the upstream version to follow."""
        if isinstance(value, float) or (isinstance(value, str) and value[:1].isdigit()):
            return True
        return value


class Persistence(Open):
    """Where executions of a machine are kept."""

    enabled: bool = Field(True, description="Whether anything is kept on disk.", examples=[True])
    backend: str = Field("memory", description="The kind of store, or its URL.", examples=["sqlite"])
    db_path: str | None = Field(None, description="The database file.", examples=["flat.db"])
    checkpoint_on: list[str] | None = Field(
        None, description="Events after which to checkpoint.", examples=[["machine_start"]]
    )


class TreeRef(Closed):
    """A tree used as a child machine."""

    tree: str = Field(description="Module and name of the charter.", examples=["travel.charter:charter"])
    node: str | None = Field(None, description="The node to start at.", examples=["desk"])
    until: Literal["cede", "end_turn"] | None = Field(
        None, description="When the child counts as done.", examples=["cede"]
    )


def _agent_ref_shape(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "typed" if isinstance(value, TypedAgent) else "inline"
    if isinstance(value, dict):
        return "inline" if "spec" in value or "data" in value else "typed"
    return shape(value)


AgentRef = Annotated[
    Annotated[str, Tag("text")] | Annotated[AgentFile, Tag("inline")] | Annotated[TypedAgent, Tag("typed")],
    Discriminator(_agent_ref_shape),
]


def _machine_ref_shape(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "tree" if isinstance(value, TreeRef) else "inline"
    if isinstance(value, dict):
        return "tree" if "tree" in value else "inline"
    return shape(value)


MachineRef = Annotated[
    Annotated[str, Tag("text")] | Annotated[TreeRef, Tag("tree")] | Annotated["MachineFile", Tag("inline")],
    Discriminator(_machine_ref_shape),
]


CatalogueRef = Annotated[
    Annotated[str, Tag("text")] | Annotated[dict[str, Any], Tag("mapping")],
    by_shape,
]


class MachineData(Closed):
    """A machine: states, and what they use."""

    name: str = Field("unnamed-machine", description="The machine's name.", examples=["hello-world"])
    expression_engine: Literal["simple", "cel"] = Field(
        "simple", description="The language of conditions.", examples=["simple"]
    )
    context: dict[str, Any] = Field(
        default_factory=dict,
        description="The memory a run starts with; templates see `input`.",
        examples=[{"topic": "{{ input.topic }}"}],
    )
    agents: dict[str, AgentRef] = Field(
        default_factory=dict, description="Agents by name.", examples=[{"writer": "./writer.yml"}]
    )
    machines: dict[str, MachineRef] = Field(
        default_factory=dict, description="Child machines by name.", examples=[{"child": "./child.yml"}]
    )
    states: dict[str, State] = Field(
        default_factory=dict, description="States by name.", examples=[{"done": {"type": "final"}}]
    )
    settings: Settings = Field(
        default_factory=Settings, description="Limits and choices.", examples=[{"max_steps": 100}]
    )
    persistence: Persistence = Field(
        default_factory=Persistence,
        description="Where executions are kept.",
        examples=[{"backend": "sqlite"}],
    )
    lifecycle_hooks: HooksRef | None = Field(
        None, description="Hooks for the start and the end of a run.", examples=["logging"]
    )
    hooks: HooksRef | None = Field(
        None, description="Hooks of the whole machine (2.5.0 shape).", examples=["hello-world-hooks"]
    )
    profiles: CatalogueRef | None = Field(
        None,
        description="The catalogue: a file, or what would be in it; `profiles.yml` beside the machine when absent.",
        examples=["./profiles.yml", {"model_profiles": {"fast": {"name": "gpt-5-mini"}}}],
    )
    max_steps: int | None = Field(
        None, ge=0, description="Most steps; `settings.max_steps` wins.", examples=[100]
    )

    @property
    def initial(self) -> str:
        """The state a run begins in: the one of type `initial`, else `start`, else the first."""
        for name, state in self.states.items():
            if state.type == "initial":
                return name
        return "start" if "start" in self.states else next(iter(self.states), "")

    @property
    def generation(self) -> Literal["2.5", "4"]:
        """Which shape this is: machine-level `hooks` alone mark a 2.5.0 file."""
        local = any(state.hooks is not None for state in self.states.values())
        return "2.5" if self.hooks is not None and self.lifecycle_hooks is None and not local else "4"


class MachineFile(Closed):
    """A machine file."""

    spec: Literal["flatmachine"] = Field(description="The kind of file.", examples=["flatmachine"])
    spec_version: Version = Field(
        SPEC_VERSION, description="The version it was written for.", examples=["4.2.1"]
    )
    data: MachineData = Field(description="The machine.", examples=[{"states": {"done": {"type": "final"}}}])
    metadata: Metadata = Field(default_factory=dict)


MachineData.model_rebuild()
MachineFile.model_rebuild()
