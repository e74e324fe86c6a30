"""Who drives an execution, and whether that process still lives.

A lease ends when its owner stops its heartbeat. A process of this host that is gone need not be waited for:
its pid is free, or belongs to another process (which the start time tells), or the machine was started again
(which the boot id tells). Whatever cannot be told for sure counts as alive, and the heartbeat decides.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import uuid
from functools import cache
from pathlib import Path

from flat.backends.protocols import Owner


def this_process(owner: str | None = None) -> Owner:
    """An `Owner` that describes the running process, under a fresh id unless one is given."""
    pid = os.getpid()
    return Owner(
        owner=owner or uuid.uuid4().hex, host=_host(), pid=pid, boot=_boot(), started=_started(pid) or ""
    )


def may_take_over(holder: Owner, *, seen: float, ttl: float, now: float) -> bool:
    """True when the holder's heartbeat is older than its ttl, or its process is gone."""
    return now - seen > ttl or is_gone(holder)


def is_gone(owner: Owner) -> bool:
    """True when the owner was a process of this host and is certainly gone."""
    if owner.host != _host():
        return False
    boot, namespace = _split(owner.boot)
    here, our_namespace = _split(_boot())
    if boot and here and boot != here:
        return True
    if namespace != our_namespace:
        # Pids of another container mean nothing in this one.
        return False
    started = _started(owner.pid)
    if started is None:
        return True
    return bool(started and owner.started and started != owner.started)


def describe(owner: Owner) -> str:
    """How a message names an owner: who, and where to look for it."""
    return f"{owner.owner} (pid {owner.pid} on {owner.host.partition('/')[0]})"


def _split(boot: str) -> tuple[str, str]:
    identity, _, namespace = boot.partition("/")
    return identity, namespace


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@cache
def _host() -> str:
    # Two machines may share a name; the machine id tells them apart where there is one.
    return f"{socket.gethostname()}/{_read('/etc/machine-id')}"


@cache
def _boot() -> str:
    namespace = ""
    with contextlib.suppress(OSError, AttributeError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{_read('/proc/sys/kernel/random/boot_id')}/{namespace}"


def _started(pid: int) -> str | None:
    """When a process started, in the system's own words; "" if that cannot be told, None if there is none."""
    if pid <= 0:
        return None
    if sys.platform == "win32":
        return _started_on_windows(pid)
    if sys.platform == "linux" and (found := _started_on_linux(pid)) != "":
        return found
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        # Not ours to signal, but there.
        return ""
    return ""


def _started_on_linux(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if os.path.exists("/proc/self/stat") else ""
    except OSError:
        return ""
    # The command name may hold spaces and brackets; the fields after its last bracket do not.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        # Dead, and only waiting for its parent to notice.
        return None
    return fields[19]


def _started_on_windows(pid: int) -> str | None:
    # os.kill(pid, 0) would send Ctrl-C there.
    import ctypes

    if sys.platform != "win32":
        return ""
    query_limited_information, still_active, invalid_parameter = 0x1000, 259, 87
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(query_limited_information, False, pid))
    if not handle:
        return None if ctypes.get_last_error() == invalid_parameter else ""
    try:
        code = ctypes.c_ulong()
        if kernel.GetExitCodeProcess(handle, ctypes.byref(code)) and code.value != still_active:
            return None
        times = [ctypes.c_ulonglong() for _ in range(4)]
        if not kernel.GetProcessTimes(handle, *(ctypes.byref(time) for time in times)):
            return ""
        return str(times[0].value)
    finally:
        kernel.CloseHandle(handle)
