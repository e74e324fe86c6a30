"""Asking several times at once, and until enough answers agree."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from runtime_machines import agents, config

import flat
from flat import AgentFailed, Machine, MemoryStore, Runtime, SQLiteStore
from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.testing.agents import After, ScriptedAgent
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime(MemoryStore(), clock=VirtualClock()) as opened:
        yield opened


def asking(
    execution: Mapping[str, Any],
    helper: ScriptedAgent,
    metadata: Mapping[str, Any] | None = None,
    **state: Any,
) -> Machine:
    states = {
        "ask": {
            "agent": "helper", "execution": execution, "output_to_context": {"got": "output"},
            "transitions": [{"to": "end"}], **state,
        },
        "end": {"type": "final", "output": {"got": "context.got"}},
    }  # fmt: skip
    helpers = agents("helper")
    if metadata is not None:
        helpers["helper"]["metadata"] = dict(metadata)
    return flat.load(config=config(states, {"got": None}, agents=helpers), agents={"helper": helper})


def by_number(*answers: Any) -> ScriptedAgent:
    """Answers by the number of the sample, as its key tells."""

    def answer(request: AgentRequest) -> Any:
        return answers[int(request.idempotency_key.rpartition(".")[2])]

    return ScriptedAgent(answer)


# -- parallel --------------------------------------------------------------------------------

PARALLEL = {"type": "parallel", "n_samples": 3}


async def test_samples_come_in_the_order_of_their_start(runtime: Runtime) -> None:
    helper = by_number(After(3, "one"), After(2, "two"), "three")
    helper.clock = runtime.clock
    outcome = await runtime.start(asking(PARALLEL, helper))
    results = [{"content": "one"}, {"content": "two"}, {"content": "three"}]
    assert outcome.output == {"got": {"results": results, "count": 3}}
    assert (outcome.spent.calls, round(outcome.spent.cost, 6)) == (3, 0.003)


async def test_samples_are_asked_at_the_same_time(runtime: Runtime) -> None:
    helper = ScriptedAgent(After(10, "x"), clock=runtime.clock)
    before = runtime.clock.now()
    await runtime.start(asking(PARALLEL, helper))
    assert runtime.clock.now() - before == 10


async def test_a_sample_that_fails_is_left_out(runtime: Runtime) -> None:
    outcome = await runtime.start(asking(PARALLEL, by_number("one", ValueError("no"), "three")))
    assert outcome.output == {"got": {"results": [{"content": "one"}, {"content": "three"}], "count": 2}}


async def test_when_all_samples_fail_the_last_failure_is_the_states(runtime: Runtime) -> None:
    helper = by_number(*[AgentFailed("down", code="server_error")] * 3)
    outcome = await runtime.start(asking(PARALLEL, helper, on_error={"server_error": "end"}))
    assert (outcome.status, outcome.context["last_error"]) == ("done", "down")
    outcome = await runtime.start(asking(PARALLEL, by_number(*[ValueError(str(n)) for n in range(3)])))
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert outcome.failure.type == "ValueError"


async def test_samples_that_were_answered_are_not_asked_for_again(tmp_path: Path) -> None:
    reached = anyio.Event()

    class Helper(ScriptedAgent):
        async def call(self, request: AgentRequest) -> AgentResult:
            first = request.idempotency_key.endswith(".2") and not reached.is_set()
            result = await super().call(request)
            if first:
                reached.set()
                await anyio.sleep_forever()
            return result

    helper = Helper(lambda request: request.idempotency_key[-1])
    store = SQLiteStore(tmp_path / "s.db")
    async with Runtime(store) as one, anyio.create_task_group() as group:

        async def run() -> None:
            await one.start(asking(PARALLEL, helper), execution_id="e")

        group.start_soon(run)
        await reached.wait()
        while len((await one.inspect("e")).pending) > 1:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    async with Runtime(store) as two:
        outcome = await two.resume("e", asking(PARALLEL, helper))
    await store.close()
    assert outcome.output["got"]["results"] == [{"content": str(n)} for n in range(3)]
    assert [d.effect_id for d in outcome.in_doubt] == ["0/1/call.2"]
    assert len(helper.requests) == 4


async def test_samples_still_out_are_ended_when_one_failed_as_all_will(runtime: Runtime) -> None:
    class Helper(ScriptedAgent):
        async def call(self, request: AgentRequest) -> AgentResult:
            if not request.idempotency_key.endswith(".1"):
                await anyio.sleep_forever()
            return await super().call(request)

    helper = Helper(AgentFailed("wrong key", code="auth_error"))
    outcome = await runtime.start(asking(PARALLEL, helper))
    assert outcome.failure is not None
    assert (outcome.status, outcome.failure.message, len(helper.requests)) == ("failed", "wrong key", 1)


# -- voting ----------------------------------------------------------------------------------


def vote(**rest: Any) -> dict[str, Any]:
    return {"type": "mdap_voting", **rest}


async def test_the_first_answer_with_enough_votes_wins(runtime: Runtime) -> None:
    helper = ScriptedAgent("a", "b", "a")
    outcome = await runtime.start(asking(vote(k_margin=2), helper))
    assert outcome.output == {"got": {"content": "a"}}
    assert len(helper.requests) == 3
    assert outcome.spent.calls == 3
    assert outcome.context["_mdap_metrics"] == {
        "total_samples": 3, "total_red_flags": 0, "red_flags_by_reason": {}, "votes": 2,
    }  # fmt: skip


async def test_when_nobody_wins_the_most_common_counts_and_of_equals_the_first(runtime: Runtime) -> None:
    outcome = await runtime.start(asking(vote(k_margin=9, max_candidates=2), ScriptedAgent("a", "b")))
    assert outcome.output == {"got": {"content": "a"}}
    outcome = await runtime.start(asking(vote(k_margin=9, max_candidates=3), ScriptedAgent("a", "b", "b")))
    assert outcome.output == {"got": {"content": "b"}}


async def test_structured_answers_agree_whatever_the_order_of_their_keys(runtime: Runtime) -> None:
    helper = ScriptedAgent({"x": 1, "y": 2}, {"y": 2, "x": 1})
    outcome = await runtime.start(asking(vote(k_margin=2), helper))
    assert outcome.output == {"got": {"x": 1, "y": 2}}
    assert len(helper.requests) == 2


async def test_answers_with_a_red_flag_do_not_count(runtime: Runtime) -> None:
    metadata = {
        "parsing": {"n": {"pattern": r"n=(\w+)", "type": "int"}},
        "validation": {"type": "object", "properties": {"n": {"maximum": 9}}},
    }
    helper = ScriptedAgent("what?", "n=x", "n=12", "n=5" + "!" * 100, ValueError("down"), "n=5", "it is n=5.")
    execution = vote(k_margin=2, max_response_tokens=20)
    outcome = await runtime.start(asking(execution, helper, metadata))
    assert outcome.output == {"got": {"n": 5}}
    assert outcome.context["_mdap_metrics"]["red_flags_by_reason"] == {
        "format_error": 2, "validation_failed": 1, "length_exceeded": 1, "call_failed": 1,
    }  # fmt: skip


async def test_parsing_reads_json_and_text_over_several_lines(runtime: Runtime) -> None:
    metadata = {
        "parsing": {
            "move": {"pattern": r"move = (\[.*?\])", "type": "json"},
            "why": {"pattern": r"<why>(.*)</why>"},
        }
    }
    helper = ScriptedAgent("move = [1, 2]\n<why>because\nit is</why>")
    outcome = await runtime.start(asking(vote(k_margin=1), helper, metadata))
    assert outcome.output == {"got": {"move": [1, 2], "why": "because\nit is"}}


async def test_the_agents_own_numbers_win(runtime: Runtime) -> None:
    helper = ScriptedAgent("a")
    await runtime.start(asking(vote(k_margin=5), helper, {"mdap": {"k_margin": 2, "max_candidates": 0}}))
    assert len(helper.requests) == 2


async def test_a_vote_without_an_answer_that_counts_is_an_error(runtime: Runtime) -> None:
    execution = vote(max_candidates=2)
    outcome = await runtime.start(asking(execution, ScriptedAgent("", ""), on_error={"VotingFailed": "end"}))
    assert (outcome.status, outcome.context["last_error_type"]) == ("done", "VotingFailed")
    assert outcome.context["last_error"] == "none of 2 answers could be counted: 2 × format_error"


async def test_a_call_that_cannot_succeed_is_not_made_ten_times(runtime: Runtime) -> None:
    helper = ScriptedAgent(*[AgentFailed("wrong key", code="auth_error")] * 10)
    outcome = await runtime.start(asking(vote(), helper))
    assert outcome.failure is not None
    assert (outcome.failure.message, len(helper.requests)) == ("wrong key", 1)


async def test_when_every_call_fails_the_last_failure_is_told(runtime: Runtime) -> None:
    outcome = await runtime.start(
        asking(vote(max_candidates=2), ScriptedAgent(ValueError("a"), ValueError("b")))
    )
    assert outcome.failure is not None
    assert (outcome.failure.type, outcome.failure.message) == ("ValueError", "b")


@pytest.mark.parametrize("execution", [PARALLEL, vote(k_margin=2)])
async def test_a_family_limit_holds_within_one_state(runtime: Runtime, execution: Mapping[str, Any]) -> None:
    """Samples of a machine that may start others are counted as they are asked for."""
    helper = ScriptedAgent(AgentResult(content="a", usage=Usage(api_calls=1)))
    child = config({"s": {"type": "final"}})
    whole = config(
        {"ask": {"agent": "helper", "execution": execution, "transitions": [{"to": "end"}]}, "end": {"type": "final"}},
        agents=agents("helper"), machines={"c": child},
    )  # fmt: skip
    tested = flat.load(config=whole, agents={"helper": helper})
    outcome = await runtime.start(tested, max_agent_calls=1)
    assert (outcome.status, len(helper.requests)) == ("limit", 1)
    outcome = await runtime.resume(outcome.execution_id, tested, max_agent_calls=10)
    assert outcome.status == "done"
    assert outcome.spent.calls == len(helper.requests) == (3 if execution is PARALLEL else 2)
