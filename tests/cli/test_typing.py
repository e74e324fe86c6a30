"""Somebody types at a terminal while the live view is drawn there."""

from __future__ import annotations

import os
import pty
import sys
from typing import TYPE_CHECKING

import pyte
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

ASKING = """\
import anyio.to_thread
from flat import MachineHooks

class Asking(MachineHooks):
    async def on_action(self, state_name, action_name, context):
        context["said"] = await anyio.to_thread.run_sync(input, "your name: ")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_an_action_may_ask_and_nothing_is_drawn_over_the_answer(project: Project) -> None:
    project.write(
        machine=project.one_action("ask", output="{said: '{{ context.said }}'}"),
        toml='[hooks]\ncounting = "asking.py:Asking"\n',
    )
    (project.folder / "asking.py").write_text(ASKING)
    primary, secondary = pty.openpty()
    project.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="30", NO_COLOR="1")  # type: ignore[attr-defined]
    process = project.start("run", ".", stdin=secondary, stdout=secondary, stderr=secondary, text=False)
    os.close(secondary)
    shown, answered = b"", False
    try:
        while piece := os.read(primary, 65536):
            shown += piece
            # Nobody types before the view is gone: the cursor is shown again, and the last line erased.
            if (
                b"\x1b[?25h" in shown.partition(b"your name: ")[2]
                and shown.endswith(b"\x1b[2K")
                and not answered
            ):
                answered = True
                os.write(primary, b"Ada\n")
    except OSError:  # Linux says so when the other end is closed
        pass
    finally:
        os.close(primary)
    assert process.wait(20) == 0
    screen = pyte.Screen(100, 30)
    pyte.ByteStream(screen).feed(shown)
    lines = [line.rstrip() for line in screen.display]
    asked = lines.index("your name:")
    assert lines[asked + 1] == "Ada"
    assert lines[asked + 2].startswith("one ")
    assert "action ask" in lines[asked + 4]
    assert '  "said": "Ada"' in lines[asked:]
