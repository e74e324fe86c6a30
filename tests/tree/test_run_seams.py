"""What reaches across the seam between trees and machines of states: cancelling, limits, time, names, many at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from running import steps

import flat
from flat.runtime.machine import Machine
from flat.runtime.runtime import Runtime
from flat.runtime.treeload import tree_machine
from flat.runtime.trees import create_machine
from flat.testing.agents import ScriptedAgent
from flat.testing.clock import VirtualClock
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Instance, Node, machine_tool

pytestmark = pytest.mark.anyio

ANY: Mapping[str, Any] = {"type": "object"}
CHARTER = """
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Node, cede, machine_tool, suspend, transition

@transition("Hand over")
def report(text: str):
    return cede(text)

@transition("Wait")
def wait():
    return suspend("Please confirm", suspend_id="s1")

def answer(request):
    last = str(request.messages[-1]["content"])
    if "wait" in last:
        return say("", call("transition", to="wait"))
    if "bill" in last and "Invoice" not in last:
        return say("", call("invoice", customer="Mira"))
    return say("", call("transition_report", text=f"plan for {last}"))

any_ = {"type": "object"}
bill = machine_tool("invoice", "Bill", input_schema=any_, output=lambda out: out["text"])
plain = Node("Plan.", any_, name="plain", initial_state={}, transitions=[report, wait])
biller = Node("Bill.", any_, name="biller", initial_state={}, tools=[bill], transitions=[report])
charter = Charter("travel", executor=ScriptedExecutor(answer), nodes=[plain])
billing = Charter("billing", executor=ScriptedExecutor(answer), nodes=[biller])
"""


def spec(states: Mapping[str, Any], name: str = "parent", **data: Any) -> dict[str, Any]:
    known = {
        "name": name,
        "context": {"said": "{{ input.said }}", "all": None},
        "states": dict(states),
        **data,
    }
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": known}


def asking(entry: Mapping[str, Any], **state: Any) -> dict[str, Any]:
    ask = {
        "type": "initial", "machine": "desk", "input": {"message": "{{ context.said }}"},
        "output_to_context": {"all": "{{ output.content }}"}, "transitions": [{"to": "end"}], **state,
    }  # fmt: skip
    end = {"type": "final", "output": {"all": "{{ context.all }}"}}
    return spec({"ask": ask, "end": end}, machines={"desk": dict(entry)})


def invoice() -> dict[str, Any]:
    write = {
        "type": "initial", "agent": "writer", "output_to_context": {"text": "{{ output.content }}"},
        "transitions": [{"to": "end"}],
    }  # fmt: skip
    agents = {"writer": {"spec": "flatagent", "data": {"model": {"name": "x"}, "user": "w"}}}
    end = {"type": "final", "output": {"text": "{{ context.text }}"}}
    data = {
        "name": "invoice",
        "context": {"text": ""},
        "agents": agents,
        "states": {"write": write, "end": end},
    }
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": data}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seam_desk.py").write_text(CHARTER)
    return tmp_path


def loaded(folder: Path, config: Mapping[str, Any], **more: Any) -> Machine:
    """The machine of a file in the folder."""
    (folder / "machine.yml").write_text(json.dumps(config))  # JSON is YAML
    return flat.load(folder / "machine.yml", **more)


DESK = {"tree": "seam_desk.py:charter", "until": "cede"}


async def test_cancelling_a_machine_cancels_the_tree_that_it_runs(folder: Path) -> None:
    machine = loaded(folder, asking(DESK))
    async with Runtime(f"sqlite:///{folder / 'f.db'}") as runtime:
        outcome = await runtime.start(machine, {"said": "wait"}, execution_id="p")
        assert outcome.status == "waiting"
        assert await runtime.cancel("p", "enough")
        (child,) = await runtime.list(parent="p")
        assert child.status == "cancelled"


async def test_a_tree_that_takes_too_long_is_ended_at_the_time_of_its_state(folder: Path) -> None:
    clock = VirtualClock()
    config = asking(DESK, timeout=60, on_error="late")
    config["data"]["states"]["late"] = {"type": "final", "output": {"all": "{{ context.last_error_type }}"}}
    async with Runtime(f"sqlite:///{folder / 'f.db'}", clock=clock) as runtime:
        machine = loaded(folder, config)
        outcome = await runtime.start(machine, {"said": "wait"}, execution_id="p")
        assert outcome.status == "waiting"
        clock.advance(61)
        outcome = await runtime.resume("p", machine)
        assert outcome.output == {"all": "TimeoutError"}
        (child,) = await runtime.list(parent="p")
        assert child.status == "cancelled"


async def test_many_sessions_run_at_once_with_one_failing_state_of_affairs_each(folder: Path) -> None:
    config = asking(
        DESK, foreach="{{ context.cities }}", **{"as": "city"}, input={"message": "{{ city }}"},
        output_to_context={"all": "{{ output }}"},
    )  # fmt: skip
    config["data"]["context"]["cities"] = ["Oslo", "Rome", "Bern"]
    config["data"]["settings"] = {"native_types": True}
    async with Runtime(f"sqlite:///{folder / 'f.db'}") as runtime:
        outcome = await runtime.start(loaded(folder, config), {"said": ""}, execution_id="p")
        assert [one["content"] for one in outcome.output["all"]] == [
            "plan for Oslo", "plan for Rome", "plan for Bern",
        ]  # fmt: skip
        assert len(await runtime.list(parent="p")) == 3


async def test_the_machines_that_a_charter_names_are_those_of_its_parent(folder: Path) -> None:
    config = asking({"tree": "seam_desk.py:billing", "until": "cede"})
    config["data"]["machines"]["invoice"] = invoice()
    machine = loaded(folder, config, agents={"writer": ScriptedAgent("Invoice 7")})
    async with Runtime(f"sqlite:///{folder / 'f.db'}") as runtime:
        outcome = await runtime.start(machine, {"said": "bill it"}, execution_id="p")
        assert outcome.failure is None, outcome.failure
        assert outcome.output == {"all": "plan for Invoice 7"}
        (tree,) = await runtime.list(parent="p")
        assert tree.kind == "tree"
        (child,) = await runtime.list(parent=tree.execution_id)
        assert child.name == "invoice"
        assert outcome.spent.calls == 3


async def test_a_machine_that_a_charter_names_and_its_parent_lacks_fails_the_state(folder: Path) -> None:
    machine = loaded(folder, asking({"tree": "seam_desk.py:billing"}))
    async with Runtime(f"sqlite:///{folder / 'f.db'}") as runtime:
        outcome = await runtime.start(machine, {"said": "bill it"})
        assert outcome.failure is not None
        assert 'unknown machine "invoice"' in outcome.failure.message


# -- a tree above ----------------------------------------------------------------------------------


def above(child: Machine, name: str = "invoice") -> tuple[Charter, Node[Any]]:
    tool = machine_tool(name, "Start it", input_schema=ANY)
    node = Node("Go.", ANY, name="top", initial_state={}, tools=[tool])
    answers = say("", call(name)), "Done"
    return Charter("top", executor=ScriptedExecutor(*answers), nodes=[node]), node


async def test_cancelling_a_tree_cancels_the_machine_that_it_started(tmp_path: Path) -> None:
    waits = {"type": "initial", "wait_for": "go", "transitions": [{"to": "end"}]}
    child = flat.load(config=spec({"ask": waits, "end": {"type": "final", "output": {}}}, context={}))
    charter, node = above(child)
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        top = create_machine(
            charter, Instance(node, {}), machines={"invoice": child}, runtime=runtime, execution_id="t"
        )
        (step,) = await steps(top, "Go")
        (waiting,) = step.suspended_instances
        assert waiting["reason"] == 'machine "parent" waits on go'
        assert await runtime.cancel("t", "enough")
        (below,) = await runtime.list(parent="t")
        assert below.status == "cancelled"


async def test_machines_and_trees_count_towards_one_depth(tmp_path: Path) -> None:
    config = invoice()
    config["data"]["settings"] = {"max_depth": 1}
    config["data"]["states"]["write"] = {
        "type": "initial", "machine": "inner", "output_to_context": {"text": "{{ output.text }}"},
        "transitions": [{"to": "end"}],
    }  # fmt: skip
    config["data"]["machines"] = {"inner": invoice()}
    child = flat.load(config=config, agents={"writer": ScriptedAgent("x")})
    charter, node = above(child)
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        top = create_machine(charter, Instance(node, {}), machines={"invoice": child}, runtime=runtime)
        found = await steps(top, "Go")
        shown = str(found[0].history[-1].items)
        assert "max_depth is 1" in shown
        assert "is_error" in shown


async def test_a_tree_below_a_tree_shares_its_budget() -> None:
    inner = Node("In.", ANY, name="inner", initial_state={})
    below = Charter("below", executor=ScriptedExecutor("In here"), nodes=[inner])
    charter, node = above(tree_machine(below, until="end_turn"), "below")
    top = create_machine(
        charter,
        Instance(node, {}),
        machines={"below": tree_machine(below, until="end_turn")},
        max_agent_calls=1,
    )
    with pytest.raises(Exception, match=r"max_agent_calls \(1\) reached"):
        await steps(top, "Go")
