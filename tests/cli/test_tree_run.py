"""`flat run` of a charter: one message, a conversation, a session that waits, fails, is killed and goes on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

sys.path.insert(0, str(Path(__file__).parent))

from tree_projects import INVOICE, PARENT, SHOP, write_charter

REF = "desk.py:charter"
AUDIT = """
class Audit:
    def on_state_enter(self, state, context):
        with open("audit", "a") as file:
            file.write(state + "\\n")
"""


@pytest.fixture
def desk(project: Project) -> Project:
    write_charter(project.folder)
    return project


def test_one_message_is_answered_and_the_session_stays_open(desk: Project) -> None:
    result = desk.flat("run", REF, "-m", "book it", "--id", "x", "--quiet")
    assert result.code == 0
    assert result.out == "Oslo is booked.\n"
    assert "go on with: flat run desk.py:charter --id x -m TEXT" in result.err
    assert (desk.folder / "ledger").read_text() == "Oslo\n"


def test_a_message_may_be_an_input_like_any_other(desk: Project) -> None:
    assert desk.flat("run", REF, "-i", "message=hello", "-q").out == "Turn 1.\n"
    assert desk.flat("run", REF, "-m", "@hello", "-q").out == "Turn 1.\n"


def test_a_session_goes_on_by_its_id(desk: Project) -> None:
    desk.flat("run", REF, "-m", "hello", "--id", "x")
    result = desk.flat("run", REF, "-m", "again", "--id", "x", "-q")
    assert result.out == "Turn 2.\n"


def test_hooks_that_a_charter_names_come_from_the_project_file(desk: Project) -> None:
    charter = desk.folder / "desk.py"
    charter.write_text(charter.read_text().replace(", executor=", ', hooks="audit", executor='))
    refused = desk.flat("run", REF, "-m", "hello", "-q")
    assert refused.code != 0
    assert '[hooks] audit = "hooks.py:Class"' in refused.err
    (desk.folder / "audit.py").write_text(AUDIT)
    (desk.folder / "flat.toml").write_text('[hooks]\naudit = "audit.py:Audit"\n')
    assert desk.flat("run", REF, "-m", "hello", "--id", "x", "-q").out == "Turn 1.\n"
    assert desk.flat("run", REF, "-m", "again", "--id", "x", "-q").out == "Turn 2.\n"
    seen = (desk.folder / "audit").read_text().split()
    assert (seen.count("think"), seen.count("settle"), seen[-1]) == (2, 2, "wait")


def test_events_name_turn_step_and_instance(desk: Project) -> None:
    result = desk.flat("run", REF, "-m", "watch it", "--plain")
    assert "1.1 desk: model answered" in result.out
    assert "1.2 fares: tool transition_report done" in result.out
    assert "at rest: 3 steps, 3 model calls" in result.out
    assert "model: scripted by the charter, not a real model" in result.out
    assert "tree" not in result.out.replace("desk.py", "")


def test_json_gives_the_events_and_the_answer_with_its_reason(desk: Project) -> None:
    lines = desk.flat("run", REF, "-m", "hello", "--json").json_lines()
    assert lines[-1]["event"] == "result"
    assert lines[-1]["output"] == {"content": "Turn 1.", "reason": "end_turn"}
    assert [line["state"] for line in lines if line["event"] == "answered"] == ["desk"]


def test_what_waits_for_a_person_is_said_with_the_commands_that_help(desk: Project) -> None:
    result = desk.flat("run", REF, "-m", "Buy", "--id", "x")
    assert result.code == 4
    assert "desk waits: Please confirm the fare" in result.err
    assert "flat signal tree/x/resume/s1 JSON" in result.err
    shown = desk.flat("runs", "show", "x").out
    assert "turn 1, step 1" in shown
    assert "desk  (root, waits: Please confirm the fare)" in shown
    assert desk.flat("signal", "tree/x/resume/s1", '"yes"').code == 0
    done = desk.flat("resume", "x", "--json")
    assert done.code == 0
    assert done.json_lines()[-1]["output"]["content"] == "bought"


def test_a_signal_to_a_session_answers_what_it_asks_or_else_is_said_to_it(desk: Project) -> None:
    desk.flat("run", REF, "-m", "hello", "--id", "x")
    assert desk.flat("signal", "x", '"Buy"').out.startswith("sent to tree/x/inbox")
    assert desk.flat("resume", "x").code == 4
    assert desk.flat("signal", "x", '"yes"').out.startswith("sent to tree/x/resume/s1")
    assert desk.flat("resume", "x", "-q").code == 0


def test_a_dispatcher_resumes_a_session_that_was_answered(desk: Project) -> None:
    desk.flat("run", REF, "-m", "Buy", "--id", "x")
    desk.flat("signal", "tree/x/resume/s1", '"yes"')
    result = desk.flat("dispatch", "--once")
    assert result.out.startswith("x  travel  done")


def test_nothing_can_be_said_to_a_session_that_is_over(desk: Project) -> None:
    desk.flat("run", REF, "-m", "Buy yes", "--id", "x")
    result = desk.flat("run", REF, "-m", "more", "--id", "x")
    assert result.code == 8
    assert "nothing more can be said to it" in result.err


def test_a_session_of_another_charter_is_not_taken(desk: Project) -> None:
    desk.flat("run", REF, "-m", "hello", "--id", "x")
    other = (desk.folder / "desk.py").read_text().replace('Charter("travel"', 'Charter("other"')
    (desk.folder / "other.py").write_text(other)
    result = desk.flat("run", "other.py:charter", "-m", "hello", "--id", "x")
    assert result.code == 8
    assert 'it is one of "travel", not of "other"' in result.err


def test_a_changed_charter_is_told_and_used(desk: Project) -> None:
    desk.flat("run", REF, "-m", "Buy", "--id", "x")
    file = desk.folder / "desk.py"
    file.write_text(file.read_text().replace('"Plan."', '"Plan well."'))
    desk.flat("signal", "tree/x/resume/s1", '"yes"')
    result = desk.process("resume", "x", "-q")
    assert result.code == 0, result
    assert "the charter has changed since" in result.err


def test_a_model_that_fails_leaves_the_turn_open_for_another_try(desk: Project) -> None:
    result = desk.flat("run", REF, "-m", "fail", "--id", "x")
    assert result.code == 1
    assert 'AgentFailed in state "desk": no model today' in result.err
    (desk.folder / "mended").touch()
    again = desk.flat("run", REF, "--id", "x", "-q")
    assert again.out == "Turn 1.\n"


def test_limits_are_told_and_the_turn_goes_on_with_more(desk: Project) -> None:
    result = desk.flat("run", REF, "-m", "watch it", "--id", "x", "--max-steps", "1")
    assert result.code == 1
    assert "no end after 1 steps" in result.err
    assert desk.flat("resume", "x", "--more-steps", "5", "-q").out == "The fare is 118 EUR.\n"


def test_a_tree_needs_something_to_be_said_to_it(desk: Project) -> None:
    result = desk.flat("run", REF)
    assert result.code == 2
    assert "say something to the tree: --message TEXT" in result.err


@pytest.mark.parametrize(
    ("given", "said"),
    [("color=red", "a tree has no input color"), ("until=later", "until is session, cede or end_turn")],
)
def test_an_input_that_a_tree_does_not_have_is_refused(desk: Project, given: str, said: str) -> None:
    result = desk.flat("run", REF, "-m", "hello", "-i", given)
    assert result.code == 2
    assert said in result.err


def test_a_start_node_and_state_may_be_given(desk: Project) -> None:
    desk.flat("run", REF, "-m", "hello", "--id", "x", "-i", "node=desk", "-i", 'state:={"legs": ["Rome"]}')
    assert '"legs": ["Rome"]' in desk.flat("runs", "show", "x").out
    result = desk.flat("run", REF, "-m", "hello", "-i", "node=dask")
    assert result.code == 1
    assert 'unknown node "dask"; did you mean "desk"?' in result.err


def test_a_killed_session_goes_on_and_the_tool_in_flight_is_not_repeated(
    desk: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast("dict[str, str]", desk.environ), "HANG", "1")
    process = desk.start("run", REF, "-m", "book it", "--id", "x")
    assert process.stdout is not None
    for line in process.stdout:
        if "model answered" in line:
            break
    wait_for_booking(process, desk.folder)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    result = desk.process("resume", "x", "--plain")
    assert result.code == 0, result
    assert "tool book was in flight when the last run ended; counted as failed" in result.out
    assert "I do not know whether Oslo is booked." in result.out
    assert (desk.folder / "ledger").read_text() == "Oslo\n"


def test_a_verifier_of_the_project_file_tells_what_became_of_a_tool(
    desk: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast("dict[str, str]", desk.environ), "HANG", "1")
    charter = desk.folder / "desk.py"
    charter.write_text(
        charter.read_text().replace('"Book a city"', '"Book a city", in_doubt="verify:booked"')
    )
    (desk.folder / "ledger.py").write_text("def booked(key, effect):\n    return 'booked Oslo'\n")
    (desk.folder / "flat.toml").write_text('[verifiers]\nbooked = "ledger.py:booked"\n')
    process = desk.start("run", REF, "-m", "book it", "--id", "x")
    wait_for_booking(process, desk.folder)
    process.kill()
    process.communicate(timeout=20)
    result = desk.process("resume", "x", "-q")
    assert (result.code, result.out) == (0, "Oslo is booked.\n"), result
    assert (desk.folder / "ledger").read_text() == "Oslo\n"


def wait_for_booking(process: subprocess.Popen[str], folder: Path) -> None:
    """Until the tool has written its line; it hangs then."""
    ledger = folder / "ledger"
    while not ledger.exists() or not ledger.stat().st_size:
        assert process.poll() is None, process.communicate()


def test_a_conversation_in_a_terminal_goes_turn_by_turn(desk: Project) -> None:
    mine, its = pty.openpty()
    process = desk.start(
        "run", REF, "--plain", "--id", "x", stdin=its, stdout=its, stderr=its, close_fds=True
    )
    os.close(its)
    seen = converse(mine, [("you> ", "hello\n"), ("you> ", "again\n"), ("you> ", "\n")])
    assert process.wait(timeout=20) == 0
    assert seen.index("Turn 1.") < seen.index("Turn 2.")
    assert "go on with: flat run desk.py:charter --id x -m TEXT" in seen


def converse(terminal: int, turns: list[tuple[str, str]]) -> str:
    """Type each text when its prompt has come; gives all that was shown."""
    shown, since = "", 0
    for prompt, text in [*turns, ("\0", "")]:
        while prompt not in shown[since:]:
            try:
                read = os.read(terminal, 4096)
            except OSError:  # the other side is gone
                return shown
            if not read:
                return shown
            shown += read.decode()
        since = len(shown)
        os.write(terminal, text.encode())
    return shown


# -- projects --------------------------------------------------------------------------------


def test_a_project_file_may_name_a_charter(desk: Project) -> None:
    (desk.folder / "flat.toml").write_text(f'[run]\nmachine = "{REF}"\ninput = {{message = "hello"}}\n')
    assert desk.flat("run", ".", "-q").out == "Turn 1.\n"


def test_a_missing_key_is_told_before_anything_runs(desk: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    plain(desk)
    result = desk.flat("run", REF, "-m", "hello")
    assert result.code == 3
    assert "cannot call claude-sonnet-4-5: ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN is not set" in result.err
    assert not (desk.folder / "flat.db").exists()


def test_a_script_answers_a_standard_executor_and_it_is_said(desk: Project) -> None:
    plain(desk)
    (desk.folder / "flat.toml").write_text('[model]\nscript = "script.yml"\n')
    (desk.folder / "script.yml").write_text(
        "replies:\n"
        '  - {text: "I begin.", tool_calls: [{name: book, arguments: {city: Oslo}}]}\n'
        "  - All is booked.\n"
    )
    result = desk.process("run", REF, "-m", "book it", "--scripted", "--plain")
    assert result.code == 0, result
    assert "model: scripted from script.yml, not a real model" in result.out
    assert result.out.endswith("All is booked.\n")
    assert (desk.folder / "ledger").read_text() == "Oslo\n"


def plain(desk: Project) -> None:
    """The charter with the standard executor."""
    file = desk.folder / "desk.py"
    file.write_text(file.read_text().replace("executor=ScriptedExecutor(answer), ", ""))


# -- a machine of states that runs a charter ---------------------------------------------------


@pytest.fixture
def mixed(desk: Project) -> Project:
    (desk.folder / "machine.yml").write_text(PARENT)
    return desk


def test_a_machine_may_run_a_charter(mixed: Project) -> None:
    result = mixed.flat("run", ".", "-i", "request=Buy yes", "-q")
    assert result.code == 0, result
    assert json.loads(result.out) == {"plan": "bought"}


@pytest.mark.parametrize("how", [("resume", "x"), ("dispatch", "--once")])
def test_a_charter_that_waits_below_a_machine_goes_on_with_it(mixed: Project, how: tuple[str, ...]) -> None:
    result = mixed.flat("run", ".", "-i", "request=Buy", "--id", "x")
    assert result.code == 4
    channel = "tree/x.0-2-children/resume/s1"
    assert f"flat signal {channel} JSON" in result.err
    mixed.flat("signal", channel, '"yes"')
    result = mixed.process(*how)
    assert result.code == 0, result
    shown = json.loads(mixed.flat("runs", "show", "x", "--json").out)
    assert (shown["status"], shown["output"]) == ("done", {"plan": "bought"})


def test_a_killed_machine_goes_on_with_the_charter_that_it_runs(
    mixed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mixed.folder / "machine.yml").write_text(PARENT.replace("until: cede", "until: end_turn"))
    monkeypatch.setitem(cast("dict[str, str]", mixed.environ), "HANG", "1")
    process = mixed.start("run", ".", "-i", "request=book it", "--id", "x")
    wait_for_booking(process, mixed.folder)
    process.kill()
    process.communicate(timeout=20)
    result = mixed.process("resume", "x", "-q")
    assert result.code == 0, result
    assert json.loads(result.out) == {"plan": "I do not know whether Oslo is booked."}
    assert (mixed.folder / "ledger").read_text() == "Oslo\n"


def test_a_charter_below_a_machine_can_be_resumed_by_itself(mixed: Project) -> None:
    mixed.flat("run", ".", "-i", "request=Buy", "--id", "x")
    mixed.flat("signal", "tree/x.0-2-children/resume/s1", '"yes"')
    result = mixed.flat("resume", "x.0-2-children", "--json")
    assert result.code == 0, result
    assert result.json_lines()[-1]["output"]["content"] == "bought"


@pytest.mark.parametrize("how", [("resume", "x"), ("dispatch", "--once")])
def test_a_machine_that_a_charter_started_and_that_waits_goes_on_with_it(
    desk: Project, how: tuple[str, ...]
) -> None:
    (desk.folder / "shop.py").write_text(SHOP)
    (desk.folder / "invoice.yml").write_text(INVOICE)
    result = desk.flat("run", "shop.py:charter", "-m", "bill her", "--id", "x")
    assert result.code == 4
    assert "flat signal approve/invoice JSON" in result.err
    desk.flat("signal", "approve/invoice", '{"by": "Ann"}')
    assert desk.process(*how).code == 0
    shown = json.loads(desk.flat("runs", "show", "x", "--json").out)
    assert shown["context"]["turn"]["open"] is False
    assert [child["status"] for child in shown["family"]["children"]] == ["done"]
    again = desk.flat("run", "shop.py:charter", "--id", "x", "-q")
    assert again.out == "Sent: Invoice for Mira, approved by Ann\n"


def test_a_leaf_that_waits_for_its_machine_is_shown_and_may_be_talked_to(desk: Project) -> None:
    (desk.folder / "shop.py").write_text(SHOP)
    (desk.folder / "invoice.yml").write_text(INVOICE)
    first = desk.flat("run", "shop.py:charter", "-m", "bill her", "--id", "x")
    again = desk.flat("run", "shop.py:charter", "-m", "hurry", "--id", "x")
    for result in (first, again):
        assert result.code == 4
        assert 'desk waits: machine "invoice" waits on approve/invoice' in result.err
    shown = desk.flat("runs", "show", "x").out
    assert 'desk  (root, waits: machine "invoice" waits on approve/invoice)' in shown
    assert "invoice  waiting" in shown.partition("family:")[2]
    desk.flat("signal", "approve/invoice", '{"by": "Ann"}')
    last = desk.flat("run", "shop.py:charter", "--id", "x", "-q")
    assert last.out == "Sent: Invoice for Mira, approved by Ann\n"


def test_a_fork_of_a_session_goes_its_own_way(desk: Project) -> None:
    desk.flat("run", REF, "-m", "hello", "--id", "x")
    assert desk.flat("fork", "x", "--id", "y").code == 0
    assert desk.flat("run", REF, "-m", "again", "--id", "y", "-q").out == "Turn 2.\n"
    assert desk.flat("run", REF, "-m", "again", "--id", "y", "-q").out == "Turn 3.\n"
    assert desk.flat("run", REF, "-m", "again", "--id", "x", "-q").out == "Turn 2.\n"


# -- looking -----------------------------------------------------------------------------------


def test_validate_describes_a_charter(desk: Project) -> None:
    result = desk.flat("validate", REF)
    assert result.code == 0
    assert "desk.py:charter: ok" in result.out
    assert "desk   tools book; transitions watch → fares, wait, report; commands clear" in result.out
    assert "fares  worker; transitions report" in result.out
    (data,) = json.loads(desk.flat("validate", REF, "--json").out)
    assert data["charter"]["nodes"].keys() == {"desk", "fares"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("desk.py:chartr", 'did you mean "charter"?'),
        ("desk.py:desk", "is a Node, not a charter"),
        ("nowhere.py:charter", "there is no file"),
        ("broken.py:charter", "broken.py:1: ZeroDivisionError: division by zero"),
        ("twice.py:charter", 'two packs have the name "notes"'),
        ("machines.py:charter", "put invoice.yml, or a folder invoice with a machine, beside the charter"),
    ],
)
def test_a_charter_that_is_wrong_is_told_in_one_message(desk: Project, reference: str, said: str) -> None:
    (desk.folder / "broken.py").write_text("1 / 0\n")
    (desk.folder / "twice.py").write_text(
        "from flat.tree import Charter, Pack\ncharter = Charter('x', packs=[Pack('notes'), Pack('notes')])\n"
    )
    (desk.folder / "machines.py").write_text(
        "from flat.tree import Charter, Node, machine_tool\n"
        "node = Node('x', dict, name='x', tools=[machine_tool('invoice', 'Bill')])\n"
        "charter = Charter('x', nodes=[node])\n"
    )
    result = desk.flat("validate", reference)
    assert result.code == 3
    assert said in result.out
    run = desk.flat("run", reference, "-m", "hello")
    assert run.code == 3
    assert said in run.err


def test_validate_looks_into_the_charters_of_a_machine(mixed: Project) -> None:
    assert mixed.flat("validate", "machine.yml").code == 0
    file = mixed.folder / "machine.yml"
    file.write_text(file.read_text().replace("node: desk", "node: dask"))
    result = mixed.flat("validate", "machine.yml")
    assert result.code == 3
    assert 'machine "desk" (tree desk.py:charter): unknown node "dask"; did you mean "desk"?' in result.out


def test_a_charter_is_drawn_with_the_transitions_that_its_code_names(desk: Project) -> None:
    drawn = desk.flat("graph", REF).out
    assert 'n0["desk<br/>tool book<br/>transition wait<br/>transition report"]' in drawn
    assert 'n1(["fares<br/>transition report"])' in drawn
    assert 'n0 -->|"watch"| n1' in drawn


def test_a_typed_client_is_made_of_a_charter_or_its_description(desk: Project) -> None:
    assert desk.flat("tree", "describe", REF, "-o", "charter.json").code == 0
    stubs = desk.flat("tree", "stubs", REF).out
    assert "def clear(" in stubs
    assert desk.flat("tree", "stubs", "charter.json").out == stubs
