"""Who else works on a store, by the register of workers, and which of them we are.

The register only spares the store work: how many share a queue, and so how much of it each looks at. Nothing depends on
its being right, so once a worker is entered, a register that cannot be reached is a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flat.backends.protocols import Owner
from flat.backends.work import RegistrationBackend, WorkerFilter, WorkerRecord, WorkerRegistration
from flat.drivers.clock import Clock
from flat.errors import FlatError

log = logging.getLogger("flat")

POOL = "flat"
"""The name by which workers of this kind are entered in the register."""


@dataclass
class Fleet:
    """A worker among the workers of one store; alone, when it has no register."""

    owner: Owner
    clock: Clock
    lease_seconds: float
    name: str = ""
    workers: int = field(default=1, init=False)
    rank: int = field(default=0, init=False)
    """Which of those workers we are."""
    _register: RegistrationBackend | None = field(default=None, init=False, repr=False)

    async def enter(self, register: RegistrationBackend) -> None:
        """Enter the worker, and count the others."""
        self._register = register
        host = self.owner.host.partition("/")[0]
        self.name = self.name or f"{host}:{self.owner.pid}"
        said = WorkerRegistration(
            worker_id=self.name, host=host, pid=self.owner.pid, started_at=self.clock.now(), pool_id=POOL
        )
        await register.register(said)
        await self.count()

    async def be_heard_of(self, tell: Callable[[], Mapping[str, Any]]) -> None:
        """Say what the worker is doing, again and again. `tell` gives that, with the `runs` in hand."""
        while (register := self._register) is not None:
            try:
                said = tell()
                current = said["runs"][0] if said["runs"] else ""
                await register.heartbeat(self.name, said, current_task_id=current)
                record = await register.get(self.name)
                if record is not None and record.status == "lost":  # the host was asleep, and is not any more
                    await register.update_status(self.name, "active")
            except (FlatError, OSError) as error:
                log.warning("the register of workers could not be reached: %s", error)
            await self.clock.sleep_until(self.clock.now() + self.lease_seconds / 3)

    async def count(self) -> None:
        """How many workers there are; those who were not heard of for too long are marked as lost."""
        if self._register is None:
            return
        now = self.clock.now()
        try:
            active: Sequence[WorkerRecord] = await self._register.list(
                WorkerFilter(status="active", pool_id=POOL)
            )
            lost = [w for w in active if now - w.last_heartbeat > 2 * self.lease_seconds]
            for worker in lost:
                await self._register.update_status(worker.worker_id, "lost")
            names = [w.worker_id for w in active if w not in lost and not w.metadata.get("stopping")]
            self.workers = max(1, len(names))
            self.rank = names.index(self.name) if self.name in names else 0
        except (FlatError, OSError) as error:
            log.warning("the register of workers could not be read: %s", error)

    async def leave(self, ran: int) -> None:
        """Say that the worker has ended."""
        if (register := self._register) is None:
            return
        self._register = None
        try:
            try:
                said = {"running": 0, "runs": [], "ran": ran}
                await register.heartbeat(self.name, said, current_task_id="")
                await register.update_status(self.name, "terminated")
            finally:
                await register.close()
        except (FlatError, OSError) as error:
            log.warning("the register of workers was not told of the end: %s", error)
