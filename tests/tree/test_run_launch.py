"""A worker may be an execution of its own: launched, awaited, ceded like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import ANY, report, roles, steps, told, wait

from flat.agents.protocol import AgentRequest, AgentResult
from flat.errors import TreeError
from flat.runtime.runtime import Runtime
from flat.runtime.trees import create_machine
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Instance, Node, spawn, transition

pytestmark = pytest.mark.anyio

scout = Node("Scout.", ANY, name="scout", worker=True, transitions=[report, wait])
plain = Node("Talk.", ANY, name="plain", initial_state={})


@transition("Send a scout")
def send(to: str) -> Any:
    return spawn(scout, {"to": to}, brief=f"Look at {to}", launch=True)


@transition("Send somebody who is no worker")
def send_wrong() -> Any:
    return spawn(plain, launch=True)


base = Node("Plan.", ANY, name="base", initial_state={}, transitions=[send, send_wrong])
NODES = [base, scout, plain]
SENT = say("", call("transition_send", to="Oslo", reason=""))


def of(answers: Any, **options: Any) -> Any:
    scripted = Charter("scouting", executor=ScriptedExecutor(answers), nodes=NODES)
    return create_machine(scripted, Instance(base, {}, id="r"), **options)


async def test_a_launched_worker_is_an_execution_with_a_history_of_its_own() -> None:
    scouts = of({"base": [SENT, "It is cold."], "scout": [say("", call("transition_report", text="snow"))]})
    found = await steps(scouts, "Where to?")
    assert told(found) == [("tool_use", False), ("cede", False), ("end_turn", True)]
    assert found[1].cede_content == "snow"
    assert "user:snow" in roles(found[1].history)
    (child,) = await scouts.runtime.list(parent=scouts.execution_id)
    assert (child.status, child.kind) == ("done", "tree")
    own = await scouts.runtime.messages(child.execution_id)
    assert [row["role"] for row in own] == ["assistant", "user", "instance"]
    assert not [m for m in scouts.history if m.role == "assistant" and not m.text and m is not m]
    assert (await scouts.runtime.inspect(scouts.execution_id)).spent.calls == 3


async def test_what_it_was_told_is_the_brief_and_nothing_of_its_parent() -> None:
    asked: list[AgentRequest] = []

    def answer(request: AgentRequest) -> AgentResult:
        asked.append(request)
        return SENT if len(asked) == 1 else say("Snow.") if len(asked) == 2 else say("It is cold.")

    found = await steps(of(answer), "A secret question")
    assert found[-1].response == "It is cold."
    said = [m["content"] for m in asked[1].messages or () if m["role"] == "user"]
    assert said == ["Look at Oslo"]
    assert "secret" not in str(asked[1].messages)


async def test_a_launched_worker_that_ends_its_turn_cedes_its_text() -> None:
    found = await steps(of({"base": [SENT, "Done"], "scout": ["Snow everywhere."]}), "Where to?")
    assert found[1].cede_content == "Snow everywhere."


async def test_a_launched_worker_that_waits_parks_its_parent_visibly(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"

    def answer(request: AgentRequest) -> AgentResult:
        said = str(request.messages)
        if request.input["node"] == "base":
            return say("Thanks.") if "approved" in said else SENT
        if "yes" in said:
            return say("", call("transition_report", text="approved", reason=""))
        return say("", call("transition", to="wait", reason=""))

    async with Runtime(url) as runtime:
        found = await steps(of(answer, runtime=runtime, execution_id="t"), "Go")
        assert told(found) == [("tool_use", False), ("awaiting_resume", True)]
        (waiting,) = found[1].suspended_instances
        assert waiting["reason"] == '"scout" waits: Please confirm'
        channel = next(c for c in waiting["metadata"]["channels"] if c.endswith("/resume/s1"))
    async with Runtime(url) as runtime:
        await runtime.signal(channel, "yes")
        found = await steps(await of(answer, runtime=runtime, execution_id="t").load())
        assert found[-1].response == "Thanks."


async def test_only_workers_are_launched() -> None:
    wrong = say("", call("transition", to="send_wrong", reason=""))
    scouts = of({"base": [wrong, "Sorry"]})
    found = await steps(scouts, "Go")
    assert "is no worker" in str(found[0].history[-1].items)
    assert scouts.instance.children == ()


async def test_a_family_of_launched_workers_shares_its_budget() -> None:
    scouts = of({"base": [SENT, "Done"], "scout": ["Snow."]}, max_agent_calls=1)
    with pytest.raises(Exception, match=r"max_agent_calls \(1\) reached"):
        await steps(scouts, "Where to?")
    assert (await scouts.runtime.inspect(scouts.execution_id)).status == "limit"


async def test_cancelling_the_tree_cancels_what_it_launched() -> None:
    waits = say("", call("transition", to="wait", reason=""))
    scouts = of({"base": [SENT, "Done"], "scout": [waits]})
    await steps(scouts, "Where to?")
    await scouts.runtime.cancel(scouts.execution_id, "enough")
    (child,) = await scouts.runtime.list(parent=scouts.execution_id)
    assert child.status == "cancelled"


async def test_a_failing_launched_worker_cedes_its_failure() -> None:
    scouts = of({"base": [SENT, "Too bad"], "scout": [TreeError("broken", "no boots")]})
    found = await steps(scouts, "Where to?")
    assert "no boots" in found[1].cede_content
    assert found[-1].response == "Too bad"
