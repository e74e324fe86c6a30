"""The registry: which adapter makes which agent, and what executors may give."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import flat
from flat.agents.adapters import (
    AgentAdapterContext,
    AgentAdapterRegistry,
    AgentRef,
    UnknownAgentType,
    as_agent,
    builtin_adapters,
    check_types,
    default_registry,
    make_agent,
    normalize_agent_ref,
)
from flat.agents.claude_code import ClaudeCodeAgent
from flat.agents.executor_result import ExecutorResult, as_result, coerce_agent_result
from flat.agents.model_agent import ModelAgent
from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.errors import AgentFailed, BindingError, SpecError

HERE = AgentAdapterContext(config_dir="/project")


class Executor:
    """What an adapter of the seed system makes."""

    metadata = {"k": 1}  # noqa: RUF012

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls: list[Any] = []

    async def execute(self, input_data: Any, context: Any = None, session_id: Any = None) -> Any:
        self.calls.append((input_data, context, session_id))
        return self.answer

    async def execute_with_tools(
        self, input_data: Any, tools: Any, messages: Any = None, context: Any = None
    ) -> Any:
        self.calls.append((input_data, tools, messages, context))
        return self.answer


class Adapter:
    def __init__(self, type_name: str, made: Any = None) -> None:
        self.type_name, self.made = type_name, made or Executor("hi")
        self.asked: list[Any] = []

    def create_executor(self, *, agent_name: str, agent_ref: Any, context: Any) -> Any:
        self.asked.append((agent_name, agent_ref, context))
        return self.made


def make(registry: AgentAdapterRegistry, type_: str, **config: Any) -> Any:
    return registry.make("a", AgentRef(type_, config=config), HERE)


def test_the_built_in_types_come_in_by_the_same_door() -> None:
    registry = AgentAdapterRegistry(builtin_adapters())
    assert registry.types == ("flatagent", "claude-code", "codex-cli", "smolagents", "pi-agent")
    assert isinstance(make(registry, "claude-code"), ClaudeCodeAgent)


def test_an_adapter_of_ones_own_wins_over_the_built_in_one() -> None:
    mine = Adapter("claude-code")
    assert make(default_registry([mine]), "claude-code", model="x").executor is mine.made
    assert mine.asked == [("a", AgentRef("claude-code", config={"model": "x"}), HERE)]


def test_a_type_that_nothing_makes_is_told_with_what_is_near() -> None:
    with pytest.raises(UnknownAgentType) as caught:
        make(default_registry(), "claud-code")
    words = str(caught.value)
    assert words.startswith("No agent adapter registered for type 'claud-code' (agent \"a\")")
    assert 'did you mean "claude-code"?' in words
    assert "agent_adapters=[MyAdapter()]" in words
    assert isinstance(caught.value, KeyError | BindingError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == words
    with pytest.raises(KeyError, match="No agent adapter registered for type 'x'"):
        AgentAdapterRegistry().get("x")


def test_a_flatagent_adapter_of_ones_own_serves_the_types_that_have_none() -> None:
    mine = Adapter("flatagent")
    registry = AgentAdapterRegistry([mine])
    registry.make("a", AgentRef("acme", "./x", {"n": 1}), HERE)
    (_, ref, _) = mine.asked[0]
    assert ref.type == "flatagent"
    assert ref.config["data"]["profile"] == {"type": "acme", "ref": "./x", "n": 1}
    assert "input.task" in ref.config["data"]["prompt"]["user"]


def test_the_types_of_a_program_are_checked_before_it_runs() -> None:
    check_types({"a": {"type": "claude-code"}, "b": {}}, default_registry())
    check_types({"a": {"type": "acme"}}, default_registry([Adapter("acme")]))
    with pytest.raises(UnknownAgentType, match='agent "b"'):
        check_types({"a": {}, "b": {"type": "acme"}}, default_registry())


def test_what_is_no_adapter_is_refused() -> None:
    with pytest.raises(BindingError, match="type_name"):
        default_registry([object()])  # type: ignore[list-item]
    with pytest.raises(BindingError, match="neither `call` nor `execute`"):
        make(default_registry([Adapter("acme", made=object())]), "acme")


@pytest.mark.parametrize(
    ("raw", "ref"),
    [
        ("./a.yml", AgentRef("flatagent", "./a.yml")),
        ({"type": "x", "ref": "r", "config": {"a": 1}}, AgentRef("x", "r", {"a": 1})),
        ({"spec": "flatagent", "data": {}}, AgentRef("flatagent", None, {"spec": "flatagent", "data": {}})),
    ],
)
def test_references_in_every_form_are_read(raw: Any, ref: AgentRef) -> None:
    assert normalize_agent_ref(raw) == ref


@pytest.mark.parametrize("raw", [5, None, {"data": {}}, ["x"]])
def test_what_is_no_reference_is_refused(raw: Any) -> None:
    with pytest.raises(SpecError, match="Invalid agent reference"):
        normalize_agent_ref(raw)


def test_settings_of_the_machine_lie_under_those_of_the_agent() -> None:
    runners = {"agent_runners": {"claude_code": {"model": "m", "effort": "low"}}}
    context = AgentAdapterContext(config_dir="/project", settings=runners)
    made: Any = default_registry().make("a", AgentRef("claude-code", config={"model": "mine"}), context)
    assert (made.settings.model, made.settings.effort, made.directory) == ("mine", "low", Path("/project"))


def test_an_agent_of_prompts_and_a_model_is_made_by_the_same_door() -> None:
    data = {"model": {"provider": "openai", "name": "tiny"}, "user": "{{ input.x }}"}
    made: Any = make_agent("a", {"name": "greeter", "type": "flatagent", "config": data, "catalogue": None})
    assert isinstance(made, ModelAgent)
    assert (made.name, made.model) == ("greeter", "openai/tiny")


@pytest.mark.anyio
async def test_an_executor_gets_input_context_and_session() -> None:
    executor = Executor({"answer": 1})
    request = AgentRequest(input={"q": "x"}, context={"n": 1}, session_id="s")
    result = await as_agent(executor, "a").call(request)
    assert executor.calls == [({"q": "x"}, {"n": 1}, "s")]
    assert result.payload() == {"answer": 1}


@pytest.mark.anyio
async def test_an_executor_that_knows_no_session_is_given_none() -> None:
    executor = Executor("done")
    request = AgentRequest(input={"q": "x"}, tools=[{"t": 1}], messages=[{"role": "user"}], session_id="s")
    await as_agent(executor, "a").call(request)
    assert executor.calls == [({"q": "x"}, [{"t": 1}], [{"role": "user"}], {})]


@pytest.mark.anyio
async def test_an_executor_without_tools_says_so() -> None:
    class Plain:
        async def execute(self, input_data: Any) -> Any:
            return "fine"

    agent = as_agent(Plain(), "a")
    assert (await agent.call(AgentRequest())).content == "fine"
    with pytest.raises(AgentFailed, match="Plain has no method execute_with_tools"):
        await agent.call(AgentRequest(tools=[{"t": 1}]))


@pytest.mark.anyio
async def test_an_executor_that_reports_events_is_listened_to_while_it_works() -> None:
    class Telling:
        _stream_event_callback: Any = None

        async def execute(self, input_data: Any) -> Any:
            self._stream_event_callback({"n": 1})
            return "done"

    seen: list[Any] = []
    executor = Telling()
    await as_agent(executor, "a").call(AgentRequest(on_event=seen.append))
    assert (seen, executor._stream_event_callback) == ([{"n": 1}], None)


@pytest.mark.anyio
async def test_an_error_in_a_result_is_raised() -> None:
    error = {"code": "rate_limit", "type": "Busy", "message": "later", "retryable": True, "status_code": 429}
    limit = {"limited": True, "retry_after": 3}
    executor = Executor({"error": error, "rate_limit": limit, "usage": {"api_calls": 2}})
    with pytest.raises(AgentFailed, match='agent "a": later') as caught:
        await as_agent(executor, "a").call(AgentRequest())
    failed = caught.value
    assert (failed.code, failed.type, failed.retryable) == ("rate_limit", "Busy", True)
    assert (failed.status_code, failed.retry_after, failed.usage.api_calls) == (429, 3, 2)


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        (None, {}),
        ("text", {"content": "text"}),
        (5, {"content": "5"}),
        ({"a": 1}, {"a": 1}),
        ({"output": {"a": 1}, "extra": 2}, {"a": 1}),
        ({"content": "hi", "usage": {}}, {"content": "hi"}),
        ({"content": "", "output": None}, {"content": ""}),
        ({"metadata": {}}, {}),
        ({"result": 2, "metadata": {}}, {"result": 2, "metadata": {}}),
        (AgentResult(output=[1]), [1]),
        (ExecutorResult(content="x"), {"content": "x"}),
    ],
)
def test_whatever_an_executor_gives_becomes_a_result(value: Any, payload: Any) -> None:
    assert coerce_agent_result(value).output_payload() == payload


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "usage"),
    [
        ({}, Usage(api_calls=1)),
        ({"cost": 0.5}, Usage(api_calls=1, cost=0.5, cost_source="provider")),
        ({"cost": {"input": 0.25, "output": 0.5}}, Usage(api_calls=1, cost=0.75, cost_source="provider")),
        ({"cost": {"total": 2}, "usage": {"requests": 3, "input_tokens": 4}},
         Usage(api_calls=3, cost=2.0, cost_source="provider", input_tokens=4)),
        ({"usage": {"cost": 0.1, "calls": 0}}, Usage(api_calls=0, cost=0.1, cost_source="provider")),
    ],
)  # fmt: skip
async def test_usage_and_cost_are_read_in_every_form(given: Any, usage: Usage) -> None:
    assert (await as_agent(Executor({"content": "x", **given}), "a").call(AgentRequest())).usage == usage


MACHINE = """\
spec: flatmachine
spec_version: "2.5.0"
data:
  name: fixing
  context: {bug: "{{ input.bug }}"}
  agents:
    coder: {type: claude-code, ref: ./coder.json, config: {effort: low}}
  states:
    start:
      type: initial
      agent: coder
      input: {task: "Fix {{ context.bug }}"}
      output_to_context: {text: "{{ output.result }}", session: "{{ output.session_id }}"}
      transitions: [{to: again}]
    again:
      agent: coder
      input: {task: "Test it", resume_session: "{{ context.session }}"}
      output_to_context: {test: "{{ output.result }}"}
      transitions: [{to: end}]
    end:
      type: final
      output: {text: "{{ context.text }}", test: "{{ context.test }}"}
"""
PROGRAM = "claude"


def project(
    folder: Path, text: str = MACHINE, options: str = '{"model": "haiku", "rate_limit_delay": 0}'
) -> Path:
    (folder / "machine.yml").write_text(text)
    (folder / "coder.json").write_text(options)
    return folder / "machine.yml"


@pytest.mark.anyio
async def test_a_machine_file_runs_a_command_line_agent(program: Any, tmp_path: Path) -> None:
    told = {
        "type": "result",
        "subtype": "success",
        "session_id": "s-7",
        "num_turns": 1,
        "total_cost_usd": 0.5,
    }
    program.says([{**told, "result": "fixed"}], [{**told, "result": "tested"}])
    machine = flat.load(project(tmp_path))
    async with flat.Runtime("memory://") as runtime:
        outcome = await runtime.start(machine, {"bug": "it"})
    assert outcome.output == {"text": "fixed", "test": "tested"}
    assert outcome.spent.cost == 1.0
    first, second = (call["argv"] for call in program.calls)
    assert (first[1], second[1], second[5:7]) == ("Fix it", "Test it", ["--resume", "s-7"])
    assert first[-4:] == ["--model", "haiku", "--effort", "low"]
    assert program.calls[0]["cwd"] == str(tmp_path)


def test_misspelt_settings_and_types_are_told_in_their_file(tmp_path: Path) -> None:
    text = MACHINE.replace("effort: low", "efort: low")
    warnings = "\n".join(flat.load(project(tmp_path, text, '{"max_continuation": 3}')).warnings)
    assert '"efort" is not a known key of claude-code agents' in warnings
    assert 'did you mean "effort"?' in warnings
    assert 'coder.json:1:2: warning[unknown-setting]: "max_continuation"' in warnings
    other = tmp_path / "other"
    other.mkdir()
    told = flat.load(project(other, MACHINE.replace("claude-code", "claude-coda"))).warnings
    assert 'no built-in adapter makes agents of type "claude-coda"' in "\n".join(told)


def test_the_folder_of_a_project_is_no_part_of_its_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.add(flat.load(project(tmp_path / name)).program.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("ref", "words"),
    [("./gone.py#build", "there is no file ./gone.py"), ("../out.py", "leads out of")],
)
def test_code_that_is_not_there_or_outside_is_told_at_load(tmp_path: Path, ref: str, words: str) -> None:
    (tmp_path / "out.py").touch()
    home = tmp_path / "home"
    home.mkdir()
    text = MACHINE.replace("type: claude-code, ref: ./coder.json", f'type: smolagents, ref: "{ref}"')
    with pytest.raises(SpecError, match=words) as caught:
        flat.load(project(home, text))
    assert "machine.yml:7:" in str(caught.value)


@pytest.mark.parametrize("kind", ["smolagents", "pi-agent", "acme"])
def test_a_reference_to_code_is_not_read_as_settings(tmp_path: Path, kind: str) -> None:
    (tmp_path / "agents.py").write_text("def build_agent(): ...\n")
    text = MACHINE.replace("type: claude-code, ref: ./coder.json", f'type: {kind}, ref: "./agents.py"')
    config = flat.load(project(tmp_path, text)).program.agents["coder"]
    assert (config["type"], config["ref"], config["config"]) == (kind, "./agents.py", {"effort": "low"})


@pytest.mark.parametrize("calls", [["read"], "read", [{"id": "1", "name": "read"}, None]])
def test_tool_calls_that_are_no_mappings_are_the_agents_failure(calls: Any) -> None:
    for answer in (AgentResult(tool_calls=calls), {"content": "x", "tool_calls": calls}):
        with pytest.raises(AgentFailed, match='agent "a": tool_calls should be a list of mappings'):
            as_result(answer, "a")
