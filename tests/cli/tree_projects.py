"""Charters for the command line, answered by what they are asked."""

from __future__ import annotations

from pathlib import Path

CHARTER = '''\
"""A desk that books, hires a worker, and asks a person."""
import os
import time

from flat.errors import AgentFailed
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Ctx, Node, cede, command, command_result, spawn, suspend, tool, transition


@tool("Book a city")
def book(city: str, ctx: Ctx) -> str:
    with open("ledger", "a") as ledger:
        ledger.write(city + "\\n")
    if os.environ.get("HANG") and os.path.getsize("ledger") < 8:
        time.sleep(60)
    ctx.update_state({"legs": [*ctx.state.get("legs", []), city]})
    return f"booked {city}"


@transition("Hand over")
def report(text: str):
    return cede(text)


@transition("Start a watch")
def watch(leg: str):
    return spawn(fares, {"leg": leg}, brief=f"Watch {leg}")


@transition("Wait for a person")
def wait():
    return suspend("Please confirm the fare", suspend_id="s1")


@command("Forget all legs")
def clear(ctx):
    ctx.update_state({"legs": []})
    return command_result("cleared")


def answer(request):
    said, last = str(request.messages), str(request.messages[-1])
    node = request.input["node"]
    if "fail" in last and not os.path.exists("mended"):
        raise AgentFailed("no model today", code="server_error")
    if node == "fares":
        return say("", call("transition_report", text="118 EUR", reason=""))
    if "yes" in last:
        return say("", call("transition_report", text="bought", reason=""))
    if "unknown whether" in last or "not known whether" in last:
        return say("I do not know whether Oslo is booked.")
    if "118 EUR" in last:
        return say("The fare is 118 EUR.")
    if "booked" in last:
        return say("Oslo is booked.")
    if "Buy" in last:
        return say("", call("transition", to="wait", reason=""))
    if "watch" in last:
        return say("", call("transition_watch", leg="Oslo", reason=""))
    if "book" in last:
        return say("I begin.", call("book", city="Oslo"))
    return say(f"Turn {said.count(chr(39) + 'user' + chr(39))}.")


fares = Node("Watch one fare.", dict, name="fares", worker=True, transitions=[report])
desk = Node("Plan.", dict, name="desk", initial_state={"legs": []}, tools=[book],
            transitions=[watch, wait, report], commands=[clear])
charter = Charter("travel", executor=ScriptedExecutor(answer), nodes=[desk, fares])
'''

PARENT = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: parent
  context: {request: "{{ input.request }}"}
  machines:
    desk: {tree: "desk.py:charter", node: desk, until: cede}
  states:
    start: {type: initial, transitions: [{to: negotiate}]}
    negotiate:
      machine: desk
      input: {message: "{{ context.request }}"}
      output_to_context: {plan: "{{ output.content }}"}
      transitions: [{to: done}]
    done: {type: final, output: {plan: "{{ context.plan }}"}}
"""


def write_charter(folder: Path) -> None:
    """The charter as `desk.py:charter`, and nothing else."""
    for name in ("machine.yml", "flat.toml", "hooks.py"):
        (folder / name).unlink()
    (folder / "desk.py").write_text(CHARTER)


SHOP = """\
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Node, machine_tool


def answer(request):
    last = request.messages[-1]
    return say(f"Sent: {last['content']}") if last["role"] == "tool" else say("", call("invoice", customer="Mira"))


bill = machine_tool("invoice", "Bill", input_schema={"type": "object"}, output=lambda out: out["text"])
desk = Node("Sell.", dict, name="desk", initial_state={}, tools=[bill])
charter = Charter("shop", executor=ScriptedExecutor(answer), nodes=[desk])
"""
INVOICE = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: invoice
  context: {customer: "{{ input.customer }}", by: null}
  states:
    ask:
      type: initial
      wait_for: approve/invoice
      output_to_context: {by: "{{ output.by }}"}
      transitions: [{to: end}]
    end: {type: final, output: {text: "Invoice for {{ context.customer }}, approved by {{ context.by }}"}}
"""
