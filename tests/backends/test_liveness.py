"""Who counts as alive."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from flat.backends import this_process
from flat.backends.liveness import describe, is_gone, may_take_over


def test_we_are_alive() -> None:
    assert not is_gone(this_process())


def test_each_owner_has_its_own_id() -> None:
    assert this_process().owner != this_process().owner
    assert this_process("me").owner == "me"


def test_a_process_that_ended_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert is_gone(replace(this_process(), pid=child.pid, started=""))


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(replace(this_process(), pid=child.pid, started=""))
    child.wait()


def test_another_process_with_the_same_pid_is_not_the_owner() -> None:
    assert is_gone(replace(this_process(), started="1"))


def test_a_pid_from_before_the_last_boot_is_gone() -> None:
    us = this_process()
    assert is_gone(replace(us, boot="another-boot/" + us.boot.partition("/")[2]))


def test_a_pid_of_another_container_cannot_be_judged() -> None:
    us = this_process()
    assert not is_gone(replace(us, boot=us.boot.partition("/")[0] + "/pid:[1]", started="1"))


def test_another_host_is_judged_by_its_heartbeat_alone() -> None:
    owner = replace(this_process(), host="elsewhere", started="1")
    assert not is_gone(owner)
    assert not may_take_over(owner, seen=100, ttl=10, now=110)
    assert may_take_over(owner, seen=100, ttl=10, now=110.1)


def test_a_clock_that_goes_backwards_takes_nothing_away() -> None:
    assert not may_take_over(this_process(), seen=100, ttl=10, now=50)


def test_an_owner_is_shown_with_its_place() -> None:
    shown = describe(this_process("me"))
    assert shown.startswith("me (pid ")
    assert str(os.getpid()) in shown
