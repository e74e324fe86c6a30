"""Trees and machines of states in one family: each as a child of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import ANY, charter, desk, executor, machine, results, steps, told

import flat
from flat.errors import AgentFailed, BindingError, UnknownName
from flat.runtime.machine import Machine
from flat.runtime.runtime import Runtime
from flat.runtime.treeload import find_charter, tree_machine
from flat.runtime.trees import create_machine
from flat.testing.agents import ScriptedAgent
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Instance, Node, machine_node, machine_tool

pytestmark = pytest.mark.anyio

CHARTER = """
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Node, cede, suspend, transition

@transition("Hand over")
def report(text: str):
    return cede(text)

@transition("Wait")
def wait():
    return suspend("Please confirm", suspend_id="s1")

def answer(request):
    said = str(request.messages)
    if "fail" in said:
        from flat.errors import AgentFailed
        raise AgentFailed("no model today", code="server_error")
    if "ask" in said and "yes" not in said:
        return say("", call("transition", to="wait", reason=""))
    if request.input["node"] == "talker":
        return say("You said: " + request.messages[-1]["content"])
    return say("", call("transition_report", text="plan for " + str(request.messages[-1]["content"]), reason=""))

any_ = {"type": "object"}
desk = Node("Plan.", any_, name="desk", initial_state={}, transitions=[report, wait])
talker = Node("Talk.", any_, name="talker", initial_state={})
charter = Charter("travel", executor=ScriptedExecutor(answer), nodes=[desk, talker])
"""

PARENT = """
spec: flatmachine
spec_version: "4.2.1"
data:
  name: parent
  context: {request: "{{ input.request }}"}
  machines:
    desk: {tree: "%s:charter", node: "%s", until: %s}
  states:
    start: {type: initial, transitions: [{to: negotiate}]}
    negotiate:
      machine: desk
      input: {message: "{{ context.request }}"}
      output_to_context: {plan: "{{ output.content }}", ended_by: "{{ output.reason }}"}
      on_error: failed
      transitions: [{to: done}]
    failed: {type: final, output: {error: "{{ context.last_error }}", kind: "{{ context.last_error_type }}"}}
    done: {type: final, output: {plan: "{{ context.plan }}", by: "{{ context.ended_by }}"}}
"""


def parent(folder: Path, node: str = "desk", until: str = "cede") -> Machine:
    (folder / "travel_desk.py").write_text(CHARTER)
    (folder / "machine.yml").write_text(PARENT % ("travel_desk.py", node, until))
    return flat.load(folder / "machine.yml")


async def test_a_state_runs_a_tree_until_its_root_cedes(tmp_path: Path) -> None:
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        outcome = await runtime.start(parent(tmp_path), {"request": "Oslo"})
        assert outcome.output == {"plan": "plan for Oslo", "by": "cede"}
        assert outcome.spent.calls == 1
        (child,) = await runtime.list(parent=outcome.execution_id)
        assert (child.kind, child.status) == ("tree", "done")


async def test_a_state_runs_a_tree_for_one_turn(tmp_path: Path) -> None:
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        outcome = await runtime.start(parent(tmp_path, "talker", "end_turn"), {"request": "Oslo"})
    assert outcome.output == {"plan": "You said: Oslo", "by": "end_turn"}


async def test_a_tree_that_waits_parks_its_caller_and_both_go_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    async with Runtime(url) as runtime:
        outcome = await runtime.start(parent(tmp_path), {"request": "ask me"}, execution_id="p")
        assert outcome.status == "waiting"
        channel = next(c for c in outcome.waiting_on if "/resume/" in c)
        assert channel.endswith("/resume/s1")
    async with Runtime(url) as runtime:
        await runtime.signal(channel, "yes")
        outcome = await runtime.resume("p", parent(tmp_path))
        assert outcome.output["by"] == "cede"
        assert outcome.output["plan"].endswith("yes")


async def test_a_failing_tree_goes_where_the_error_target_says(tmp_path: Path) -> None:
    async with Runtime(f"sqlite:///{tmp_path / 'f.db'}") as runtime:
        outcome = await runtime.start(parent(tmp_path), {"request": "fail"})
    assert outcome.output["kind"] == "AgentFailed"
    assert "no model today" in outcome.output["error"]


async def test_an_agent_may_be_a_tree(tmp_path: Path) -> None:
    (tmp_path / "travel_agent.py").write_text(CHARTER)
    config = {
        "spec": "flatmachine",
        "spec_version": "4.2.1",
        "data": {
            "name": "m",
            "agents": {
                "desk": {"type": "tree", "ref": "travel_agent.py:charter", "config": {"node": "talker"}}
            },
            "states": {
                "start": {
                    "type": "initial",
                    "agent": "desk",
                    "input": {"message": "Hi"},
                    "output_to_context": {"said": "{{ output.content }}"},
                    "transitions": [{"to": "end"}],
                },
                "end": {"type": "final", "output": {"said": "{{ context.said }}"}},
            },
        },
    }
    for given in (None, []):  # also beside adapters of one's own
        machine = flat.load(config=config, directory=tmp_path, agent_adapters=given)
        outcome = await Runtime(None).start(machine)
        assert outcome.failure is None
        assert outcome.output == {"said": "You said: Hi"}
        assert outcome.spent.calls == 1


# -- machines of states in a tree --------------------------------------------------------


def invoice(answer: str = "Invoice 7", *, waits: bool = False) -> Machine:
    states: dict[str, Any] = {
        "start": {
            "type": "initial",
            "agent": "writer",
            "input": {"for": "{{ input.customer }}"},
            "output_to_context": {"text": "{{ output.content }}"},
            "transitions": [{"to": "approve" if waits else "end"}],
        },
        "end": {"type": "final", "output": {"text": "{{ context.text }}", "for": "{{ context.customer }}"}},
    }
    if waits:
        states["approve"] = {"wait_for": "approve/invoice", "transitions": [{"to": "end"}]}
    config = {
        "spec": "flatmachine",
        "spec_version": "4.2.1",
        "data": {
            "name": "invoice",
            "context": {"customer": "{{ input.customer }}"},
            "agents": {"writer": {"spec": "flatagent", "data": {"model": {"name": "x"}, "user": "w"}}},
            "states": states,
        },
    }
    return flat.load(config=config, agents={"writer": ScriptedAgent(answer)})


def seller(*answers: Any) -> Charter:
    tool = machine_tool(
        "invoice",
        "Write an invoice",
        input_schema={
            "type": "object",
            "properties": {"customer": {"type": "string"}},
            "required": ["customer"],
        },
        output=lambda out: f"{out['text']} for {out['for']}",
    )
    node = Node("Sell.", ANY, name="seller", initial_state={}, tools=[tool])
    return Charter("shop", executor=ScriptedExecutor(*answers), nodes=[node])


def shop(of: Charter, child: Machine, **options: Any) -> Any:
    return create_machine(
        of, Instance(of.nodes["seller"], {}, id="r"), machines={"invoice": child}, **options
    )


async def test_a_machine_is_offered_as_a_tool_and_its_output_is_the_result() -> None:
    sold = shop(seller(say("", call("invoice", customer="Mira")), "Done"), invoice())
    found = await steps(sold, "Bill Mira")
    assert told(found) == [("tool_use", False), ("end_turn", True)]
    assert results(found[0])[0]["content"] == "Invoice 7 for Mira"
    snapshot = await sold.runtime.inspect(sold.execution_id)
    assert snapshot.spent.calls == 3


async def test_wrong_arguments_for_a_machine_are_told_to_the_model() -> None:
    sold = shop(seller(say("", call("invoice")), "Sorry"), invoice())
    found = await steps(sold, "Bill")
    assert results(found[0])[0]["is_error"] is True
    assert await sold.runtime.list(parent=sold.execution_id) == []


async def test_a_failing_machine_is_an_error_result() -> None:
    broken = invoice()
    broken.agents = {"writer": ScriptedAgent(AgentFailed("no ink", code="server_error"))}
    found = await steps(shop(seller(say("", call("invoice", customer="Mira")), "Sorry"), broken), "Bill Mira")
    assert "no ink" in results(found[0])[0]["content"]


async def test_a_machine_that_waits_parks_the_tree_visibly(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    answers = say("", call("invoice", customer="Mira")), "Done"
    async with Runtime(url) as runtime:
        sold = shop(seller(*answers), invoice(waits=True), runtime=runtime, execution_id="t")
        found = await steps(sold, "Bill Mira")
        assert told(found) == [("awaiting_resume", True)]
        (waiting,) = found[0].suspended_instances
        assert waiting["instanceId"] == "r"
        assert waiting["metadata"]["channels"] == ["approve/invoice"]
        assert (await runtime.inspect("t")).status == "waiting"
    async with Runtime(url) as runtime:
        await runtime.signal("approve/invoice", {"ok": True})
        sold = shop(seller("Done"), invoice(waits=True), runtime=runtime, execution_id="t")
        found = await steps(await sold.load())
        assert told(found) == [("tool_use", False), ("end_turn", True)]
        assert results(found[0])[0]["content"] == "Invoice 7 for Mira"


async def test_a_node_may_be_a_machine_and_its_output_is_ceded() -> None:
    from flat.tree import spawn, transition

    billing = machine_node("invoice", name="billing", cede=lambda out: f"{out['text']} is written")

    @transition("Start billing")
    def bill() -> Any:
        return spawn(billing, {"customer": "Mira"})

    node = Node("Sell.", ANY, name="seller", initial_state={}, transitions=[bill])
    scripted = ScriptedExecutor(say("", call("transition", to="bill", reason="")), "Thanks")
    of = Charter("shop", executor=scripted, nodes=[node, billing])
    found = await steps(shop(of, invoice()), "Bill Mira")
    assert told(found) == [("tool_use", False), ("cede", False), ("end_turn", True)]
    assert found[1].cede_content == "Invoice 7 is written"


async def test_a_tree_may_be_a_tool_of_another_tree() -> None:
    tool = machine_tool("office", "Ask the office", input_schema={"type": "object"})
    node = Node("Ask.", ANY, name="asker", initial_state={}, tools=[tool])
    scripted = ScriptedExecutor(say("", call("office", message="Where?")), "Thanks")
    asker = create_machine(
        Charter("asking", executor=scripted, nodes=[node]),
        Instance(node, {}, id="r"),
        machines={"office": charter("Over here")},
    )
    found = await steps(asker, "Ask them")
    assert "Over here" in results(found[0])[0]["content"]


async def test_a_family_shares_its_budget() -> None:
    sold = shop(seller(say("", call("invoice", customer="Mira")), "Done"), invoice(), max_agent_calls=2)
    with pytest.raises(Exception, match=r"max_agent_calls \(2\) reached"):
        await steps(sold, "Bill Mira")
    snapshot = await sold.runtime.inspect(sold.execution_id)
    assert snapshot.status == "limit"


def test_a_machine_that_a_charter_names_and_nobody_gives_is_told_at_once() -> None:
    with pytest.raises(UnknownName, match="invoice"):
        tree_machine(seller("x"))


def test_a_charter_is_found_by_its_reference(tmp_path: Path) -> None:
    (tmp_path / "found_here.py").write_text(CHARTER)
    assert find_charter("found_here.py:charter", tmp_path).name == "travel"
    assert find_charter("found_here:charter", tmp_path).name == "travel"
    with pytest.raises(UnknownName, match="chartr"):
        find_charter("found_here:chartr", tmp_path)
    with pytest.raises(BindingError, match="no module"):
        find_charter("not_there_at_all:charter", tmp_path)
    with pytest.raises(Exception, match="outside the project"):
        find_charter("../outside.py:charter", tmp_path)


def test_a_tree_of_this_test_is_what_others_use() -> None:
    assert desk.name == "desk"
    assert executor(machine("x")).scripts
