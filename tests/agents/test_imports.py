"""What importing and ending costs, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

CALL = """
import anyio
from flat.agents import AgentRequest, build_agent{names}
from flat.testing.model_server import ScriptedModel
async def main():
    await anyio.sleep(0)
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(agent.call, AgentRequest(input={{"x": 1}}))
with ScriptedModel(lambda body: "hi") as model:
    config = {{"model": {{"provider": "openai", "name": "m", "base_url": model.base_url}}, "user": "u"}}
    agent = build_agent(config)
    anyio.run(main, backend="{backend}")
{ending}
print("done")
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_agents_imports_no_client_library() -> None:
    code = "import sys, flat.agents; print({'litellm', 'openai', 'httpx', 'aiohttp', 'mcp'} & sys.modules.keys())"
    assert python(code).stdout == "set()\n"


@pytest.mark.parametrize(
    ("backend", "names", "ending"), [("asyncio", "", ""), ("trio", ", close", "close()")]
)
def test_a_program_ends_without_a_word(backend: str, names: str, ending: str) -> None:
    ended = python(CALL.format(backend=backend, names=names, ending=ending))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0)
