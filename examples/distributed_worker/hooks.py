"""What the machines of this folder do besides what flat brings along."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from flat import DistributedWorkerHooks, MachineHooks, create_registration_backend, create_work_backend

DATABASE = "workers.db"
WORKER = Path(__file__).with_name("worker.yml")


def pool() -> Pool:
    """The pool and the register of workers, in one file of the folder in which one stands."""
    work = create_work_backend("sqlite", db_path=DATABASE, keep_done=True)
    register = create_registration_backend("sqlite", db_path=DATABASE)
    return Pool(register, work, heartbeat_seconds=0.5, worker_config_path=str(WORKER))


class Pool(DistributedWorkerHooks):
    """The actions of workers, checkers and reapers, and three more."""

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        match action_name:
            case "put_jobs":
                context["pool_id"] = context["machine"]["execution_id"]
                jobs = self.work.pool(context["pool_id"])
                if not await jobs.items(limit=1):  # else it was done, and is done again after a crash
                    await jobs.push_many(context["jobs"])
            case "count_jobs":
                items = await self.work.pool(context["pool_id"]).items()
                context["left"] = sum(one.status in ("pending", "claimed") for one in items)
                context["results"] = {str(one.data["number"]): one.result for one in items}
            case "pause":
                await anyio.sleep(0.5)
            case _:
                await super().on_action(state_name, action_name, context)
        return context


class Factors(MachineHooks):
    """The work itself."""

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
        job = context["job"]
        if job.get("power_cut") and context["attempt"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        context["factors"] = await anyio.to_thread.run_sync(factors, job["number"])


def factors(number: int) -> list[int]:
    """The prime factors of a number, by trial."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found
