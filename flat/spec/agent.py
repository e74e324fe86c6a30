"""The models of agent, prompt and profile files, in both generations of their shape.

A *legacy* agent says everything in one file: `model`, `system`, `user`. A *bundle* names a `prompt` and a
`profile`. If `data` has either of those two keys it is a bundle, whatever `spec_version` says.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from flat.spec.base import SPEC_VERSION, Closed, Metadata, Open, Version, by_shape

OutputType = Literal["str", "int", "float", "bool", "json", "list", "object"]
_BOUNDS = (
    (("str",), "min_length", "max_length"),
    (("list",), "min_items", "max_items"),
    (("int", "float"), "minimum", "maximum"),
)
"""The types that have bounds, and the keys of the lower and the upper one."""


class OutputField(Closed):
    """One field of the structured output that a model is asked for. Its bounds are called as in JSON Schema."""

    model_config = ConfigDict(populate_by_name=False)

    type: OutputType = Field(description="The kind of value.", examples=["str", "int"])
    description: str | None = Field(
        None, description="What the field means, for the model.", examples=["One word."]
    )
    enum: list[Any] | None = Field(None, description="The only values allowed.", examples=[["low", "high"]])
    required: bool = Field(True, description="Whether the field must be there.", examples=[False])
    items: OutputField | None = Field(None, description="What a `list` holds.", examples=[{"type": "str"}])
    properties: dict[str, OutputField] | None = Field(
        None, description="The fields of an `object`.", examples=[{"city": {"type": "str"}}]
    )
    min_length: int | None = Field(
        None, alias="minLength", ge=0, description="Fewest characters of a `str`.", examples=[1]
    )
    max_length: int | None = Field(
        None, alias="maxLength", ge=0, description="Most characters of a `str`.", examples=[80]
    )
    min_items: int | None = Field(
        None, alias="minItems", ge=0, description="Fewest entries of a `list`.", examples=[1]
    )
    max_items: int | None = Field(
        None, alias="maxItems", ge=0, description="Most entries of a `list`.", examples=[5]
    )
    minimum: int | float | None = Field(None, description="Smallest `int` or `float`.", examples=[1])
    maximum: int | float | None = Field(None, description="Largest `int` or `float`.", examples=[10])

    @model_validator(mode="after")
    def _bounds_can_be_met(self) -> OutputField:
        if (problem := self._misfit()) is not None:
            raise PydanticCustomError("bounds", "{problem}", {"problem": problem})
        return self

    def _misfit(self) -> str | None:
        """What is wrong with the bounds: not for this type, or more than anything can meet."""
        for kinds, *keys in _BOUNDS:
            told = [(_name(key), getattr(self, key)) for key in keys if getattr(self, key) is not None]
            for name, bound in told:
                if self.type not in kinds:
                    return f"{name} is for {' and '.join(kinds)}, and type is {self.type}"
                if self.enum:
                    return f"{name} says nothing beside enum; leave one of them out"
                if self.type == "int" and not isinstance(bound, int):
                    return f"{name} should be a whole number, as the values are"
            if len(told) == 2 and told[0][1] > told[1][1]:
                return f"{told[0][0]} is more than {told[1][0]}"
        return None


def _name(key: str) -> str:
    return OutputField.model_fields[key].alias or key


class McpServer(Open):
    """One MCP server: a program to start, or an HTTP address."""

    command: str | None = Field(None, description="The program to start.", examples=["uvx"])
    args: list[str] | None = Field(None, description="Its arguments.", examples=[["mcp-server-time"]])
    env: dict[str, str] | None = Field(
        None, description="Its environment, beside the usual.", examples=[{"TOKEN": "${env:TOKEN}"}]
    )
    cwd: str | None = Field(None, description="Where it runs.", examples=["/srv/data"])
    server_url: str | None = Field(
        None, description="The address of a server of streamable HTTP.", examples=["https://example.com/mcp"]
    )
    headers: dict[str, str] | None = Field(
        None, description="Headers of each request.", examples=[{"Authorization": "Bearer ${env:TOKEN}"}]
    )
    timeout: float | None = Field(None, description="Longest wait for an answer, in seconds.", examples=[20])


class ToolFilter(Closed):
    """Which tools of the servers an agent may use: `server:tool`, or `server:*` for all of one."""

    allow: list[str] | None = Field(None, description="Only these; all when absent.", examples=[["time:*"]])
    deny: list[str] | None = Field(None, description="Not these; wins.", examples=[["time:set_clock"]])


class McpConfig(Closed):
    """The MCP servers of an agent, and what its prompts say about their tools."""

    servers: dict[str, McpServer] | None = Field(
        None, description="The servers by name.", examples=[{"time": {"command": "uvx"}}]
    )
    tool_filter: ToolFilter | None = Field(
        None, description="Which of their tools may be used.", examples=[{"allow": ["time:*"]}]
    )
    tool_prompt: str | None = Field(
        None,
        description="A template over `tools`; prompts place it as `{{ tools_prompt }}`.",
        examples=["{% for tool in tools %}{{ tool.name }} {% endfor %}"],
    )


class PromptData(Closed):
    """What an agent is told, and what it may use."""

    name: str | None = Field(None, description="The name in logs and metrics.", examples=["tagger"])
    system: str | None = Field(None, description="System message, a template.", examples=["You tag tickets."])
    user: str | None = Field(
        None, description="User message, a template.", examples=["Ticket: {{ input.text }}"]
    )
    instruction_suffix: str | None = Field(
        None, description="A template appended to the user message.", examples=["Answer in one line."]
    )
    post_history_instructions: str | None = Field(
        None, description="A template placed after the chat history.", examples=["Stay in character."]
    )
    output: dict[str, OutputField] | None = Field(
        None, description="The fields of a structured answer.", examples=[{"tag": {"type": "str"}}]
    )
    output_repairs: int | None = Field(
        None,
        description="How often the model may put an answer right that does not fit `output`; 2 when absent.",
        examples=[1],
        ge=0,
        le=10,
    )
    tools: list[dict[str, Any]] | None = Field(
        None, description="Tools as JSON definitions of functions.", examples=[[{"type": "function"}]]
    )
    mcp: McpConfig | None = Field(
        None, description="MCP servers whose tools the agent may use.", examples=[{"servers": {}}]
    )


class ModelConfig(Open):
    """A model and how it is called. A key that is not listed here goes to the provider as it is."""

    name: str | None = Field(None, description="The model's name.", examples=["gpt-5-mini"])
    provider: str | None = Field(None, description="Who serves it.", examples=["openai"])
    profile: str | None = Field(None, description="A profile to start from.", examples=["fast"])
    temperature: float | None = Field(None, description="Sampling temperature.", examples=[0.2])
    max_tokens: int | None = Field(None, description="Longest answer, in tokens.", examples=[2048])
    top_p: float | None = Field(None, description="Nucleus sampling.", examples=[0.9])
    top_k: int | None = Field(None, description="Sample from the best k tokens.", examples=[40])
    frequency_penalty: float | None = Field(None, description="Penalty on frequent tokens.", examples=[0.1])
    presence_penalty: float | None = Field(None, description="Penalty on tokens seen.", examples=[0.1])
    seed: int | None = Field(None, description="Seed for sampling.", examples=[7])
    base_url: str | None = Field(
        None, description="Address of the service.", examples=["http://localhost:8000"]
    )
    stream: bool | None = Field(
        None, description="Whether the answer arrives piece by piece.", examples=[True]
    )
    stream_options: dict[str, Any] | None = Field(
        None, description="Options of streaming.", examples=[{"include_usage": True}]
    )
    backend: str | None = Field(
        None, description="What carries the call.", examples=["litellm", "codex", "copilot"]
    )
    api: str | None = Field(None, description="Which API of the provider.", examples=["responses"])
    api_key: str | None = Field(
        None, description="The key, best by reference.", examples=["${env:OPENAI_API_KEY}"]
    )
    token_command: str | list[str] | None = Field(
        None,
        description="A command that prints the key; run again when it is refused.",
        examples=["gh auth token"],
    )
    timeout: float | None = Field(None, description="Longest wait for an answer, in seconds.", examples=[60])
    oauth: dict[str, Any] | None = Field(
        None, description="Client settings for OAuth.", examples=[{"provider": "openai"}]
    )


class Profile(Open):
    """One entry of a catalogue: a model (flat, or nested under `model`), or an external runtime."""

    type: str | None = Field(
        None, description="The kind of runtime; `llm` when absent.", examples=["llm", "claude-code"]
    )
    name: str | None = Field(None, description="The model's name.", examples=["gpt-5-mini"])
    provider: str | None = Field(None, description="Who serves it.", examples=["openai"])
    model: str | dict[str, Any] | None = Field(
        None, description="A model configuration, or the name the runtime knows.", examples=["opus"]
    )


class ProfilesData(Closed):
    """A catalogue of named ways to run an agent."""

    model_profiles: dict[str, Profile] = Field(
        default_factory=dict,
        description="The profiles by name.",
        examples=[{"fast": {"provider": "openai", "name": "gpt-5-mini"}}],
    )
    default: str | None = Field(
        None, description="The profile every resolution starts from.", examples=["fast"]
    )
    override: str | None = Field(
        None, description="A profile that wins over everything else.", examples=["quality"]
    )


class ProfileFile(Closed):
    """A `profiles.yml`: a catalogue in its envelope."""

    spec: Literal["flatprofile", "flatprofiles"] = Field(
        "flatprofile", description="The kind of file.", examples=["flatprofile"]
    )
    spec_version: Version = Field(
        SPEC_VERSION, description="The version it was written for.", examples=["4.2.1"]
    )
    data: ProfilesData = Field(description="The catalogue.", examples=[{"model_profiles": {}}])
    metadata: Metadata = Field(default_factory=dict)


class PromptFile(Closed):
    """A prompt document in its envelope."""

    spec: Literal["prompt"] = Field("prompt", description="The kind of file.", examples=["prompt"])
    spec_version: Version = Field(
        SPEC_VERSION, description="The version it was written for.", examples=["4.2.1"]
    )
    data: PromptData = Field(
        default_factory=PromptData, description="The prompt.", examples=[{"user": "Hello"}]
    )
    metadata: Metadata = Field(default_factory=dict)


ModelRef = Annotated[Annotated[str, Tag("text")] | Annotated[ModelConfig, Tag("mapping")], by_shape]


class LegacyAgentData(PromptData):
    """An agent that says everything in one place."""

    model: ModelRef | None = Field(
        None, description="A profile's name, or a model.", examples=[{"profile": "fast"}]
    )


class BundleAgentData(Closed):
    """An agent made of a prompt and a profile."""

    name: str | None = Field(None, description="The name when the prompt has none.", examples=["tagger"])
    prompt: Annotated[Annotated[str, Tag("text")] | Annotated[dict[str, Any], Tag("mapping")], by_shape] = (
        Field(description="A prompt file, or the prompt itself.", examples=["./tag.prompt.yml"])
    )
    profile: Annotated[Annotated[str, Tag("text")] | Annotated[ProfileFile, Tag("mapping")], by_shape] = (
        Field(description="A profile's name, or a catalogue.", examples=["fast"])
    )


def agent_shape(value: Any) -> str:
    """`bundle` if there is a `prompt` or a `profile`, else `legacy`."""
    if isinstance(value, BundleAgentData):
        return "bundle"
    return "bundle" if isinstance(value, dict) and ("prompt" in value or "profile" in value) else "legacy"


AgentData = Annotated[
    Annotated[LegacyAgentData, Tag("legacy")] | Annotated[BundleAgentData, Tag("bundle")],
    Discriminator(agent_shape),
]


class AgentFile(Closed):
    """An agent file, or an agent written inside a machine."""

    spec: Literal["flatagent"] = Field(description="The kind of file.", examples=["flatagent"])
    spec_version: Version = Field(
        SPEC_VERSION, description="The version it was written for.", examples=["4.2.1"]
    )
    data: AgentData = Field(description="The agent.", examples=[{"prompt": "./p.yml", "profile": "fast"}])
    metadata: Metadata = Field(default_factory=dict)


class TypedAgent(Closed):
    """An agent of an external kind, named from a machine."""

    type: str = Field(description="The kind of agent.", examples=["claude-code", "codex-cli"])
    ref: str | None = Field(
        None, description="A file, or a name that the adapter knows.", examples=["./coder.json"]
    )
    config: dict[str, Any] | None = Field(
        None, description="Options; they win over those of the file.", examples=[{"model": "opus"}]
    )
