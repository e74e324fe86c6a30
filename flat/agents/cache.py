"""Where `flat` keeps on this machine what it can make or fetch again: weights, compiled programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Where `flat` keeps what it can fetch again; `FLAT_CACHE` overrides the platform's place.

    `FLAT_CACHE=off` is for what is quickly made again; weights have to be somewhere.
    """
    told = os.environ.get("FLAT_CACHE")
    if told and told != "off":
        return Path(told).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "flat" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "flat"
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path there is to be ignored.
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "flat"
