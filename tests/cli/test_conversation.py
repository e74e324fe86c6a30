"""Commands in a conversation: what is typed, what it calls, and what is said when it is wrong."""

from __future__ import annotations

import codecs
import json
import os
import pty
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from flat.cli.conversation import help_lines, input_of, usage
from flat.cli.ending import UsageError
from flat.tree.commands import CommandInfo
from tests.cli.tree_projects import write_charter

if TYPE_CHECKING:
    from tests.cli.conftest import Project

REF = "desk.py:charter"
NOTE = """

@command("Book without being asked")
def add(city: str, ctx, nights: int = 1):
    if city == "Nowhere":
        raise ValueError("no such city")
    ctx.update_state({"legs": [*ctx.state.get("legs", []), f"{city} {nights}"]})
    return command_result(f"{nights} nights")


pinned = Pack("pins", commands=[command("Say nothing", name="hush")(lambda: None)])


"""


@pytest.fixture
def desk(project: Project) -> Project:
    """A desk with two commands of its own, and one of a pack."""
    write_charter(project.folder)
    file = project.folder / "desk.py"
    text = file.read_text().replace("import Charter, Ctx, Node,", "import Charter, Ctx, Node, Pack,")
    text = text.replace("\n\ndef answer(", f"{NOTE}def answer(")
    file.write_text(text.replace("commands=[clear]", "commands=[clear, add], packs=[pinned]"))
    return project


def talk(desk: Project, lines: Sequence[str], *options: str) -> tuple[int, str]:
    """Type these lines, each at a prompt, and then nothing; gives the exit code and all that was shown."""
    mine, its = pty.openpty()
    process = desk.start(
        "run", REF, "--plain", "--id", "x", *options, stdin=its, stdout=its, stderr=its, close_fds=True
    )
    os.close(its)
    decoder = codecs.getincrementaldecoder("utf-8")()
    shown, since, left = "", 0, [*lines, ""]
    try:
        while True:
            shown += decoder.decode(os.read(mine, 4096))
            if left and "you> " in shown[since:]:
                since = len(shown)
                os.write(mine, f"{left.pop(0)}\n".encode())
    except OSError:  # the other side is gone
        assert not left, shown
        return process.wait(timeout=20), shown.replace("\r\n", "\n")
    finally:
        os.close(mine)
        process.kill()
        process.communicate()


def legs(desk: Project) -> Any:
    return json.loads(desk.flat("runs", "show", "x", "--json").out)["context"]["tree"]["state"]["legs"]


def test_a_command_runs_with_no_model_and_the_conversation_goes_on(desk: Project) -> None:
    code, shown = talk(desk, ["/add Oslo", "hello", "/add city='New York' nights=3", "/hush"])
    assert code == 0
    assert legs(desk) == ["Oslo 1", "New York 3"]
    assert (
        shown.index("1 nights") < shown.index("Turn 1.") < shown.index("3 nights") < shown.index("\ndone\n")
    )
    assert shown.count("model answered") == 1


def test_help_lists_the_commands_before_anything_ran(desk: Project) -> None:
    _, shown = talk(desk, ["/help", "/clear"])
    assert "  /clear                  Forget all legs\n" in shown
    assert "  /add city=… [nights=…]  Book without being asked\n" in shown
    assert "  /hush                   Say nothing\n" in shown
    assert "  /help                   this list\n" in shown
    assert legs(desk) == []


def test_an_unknown_command_is_answered_with_those_there_are_and_kept_nowhere(desk: Project) -> None:
    _, shown = talk(desk, ["hello", "/clera", "/nowhere", "//etc is a folder"])
    assert "error: there is no command /clera; there are:\n  /clear  " in shown
    assert shown.count("  /hush  ") == 2
    messages = json.dumps(desk.flat("runs", "export", "x", "-o", "-").out)
    assert "clera" not in messages
    assert shown.count("Turn 1.") == shown.count("Turn 2.") == 1


def test_a_command_that_fails_changes_nothing_and_the_conversation_goes_on(desk: Project) -> None:
    code, shown = talk(desk, ["/add Nowhere", "hello"])
    assert 'CommandFailed in state "desk": no such city' in shown
    assert "Turn 1." in shown
    assert (code, legs(desk)) == (0, [])


def test_a_session_that_goes_on_has_the_commands_of_where_it_stands(desk: Project) -> None:
    talk(desk, ["/add Oslo"])
    talk(desk, ["/help", "/add Rome"])
    assert legs(desk) == ["Oslo 1", "Rome 1"]


# -- what is typed ---------------------------------------------------------------------------------


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def info(required: Sequence[str] = (), **fields: Any) -> CommandInfo:
    return CommandInfo("go", "", {"type": "object", "properties": fields, "required": list(required)})


@pytest.mark.parametrize(
    ("command", "text", "value"),
    [
        (info(), "", {}),
        (info(city=TEXT), "New York's", {"city": "New York's"}),
        (info(["city"], city=TEXT, nights=NUMBER), "Oslo", {"city": "Oslo"}),
        (info(city=TEXT, nights=NUMBER), "city='New York' nights=3", {"city": "New York", "nights": 3}),
        (info(city=TEXT, nights=NUMBER), "nights:=3", {"nights": 3}),
        (info(city=TEXT), "a=b", {"city": "a=b"}),
        (info(nights=NUMBER), "3", {"nights": 3}),
        (info(any={}), '{"any": [1]}', {"any": [1]}),
        (CommandInfo("go", "", {"type": "object"}), "a=b c:=1", {"a": "b", "c": 1}),
    ],
)
def test_what_is_typed_becomes_the_input(command: CommandInfo, text: str, value: Any) -> None:
    assert input_of(command, text) == value


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        (info(a=TEXT, b=TEXT), "Oslo", r"type /go \[a=…\] \[b=…\]"),
        (info(), "Oslo", "type /go$"),
        (info(nights=NUMBER), "many", '"nights" of /go is not JSON'),
        (info(a=TEXT), "{a", "the input of /go is not JSON"),
    ],
)
def test_what_cannot_be_an_input_is_said_with_how_to_type_it(
    command: CommandInfo, text: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        input_of(command, text)


def test_a_command_named_help_is_the_charters_own() -> None:
    own = CommandInfo("help", "Mine", {"type": "object"})
    assert [line for line in help_lines([own]) if "/help" in line] == ["  /help  Mine"]
    assert usage(info(["a"], a=TEXT, b=TEXT)) == "/go a=… [b=…]"
