"""Checks of a register of workers."""

from __future__ import annotations

from typing import Any

from flat.backends.work import RegistrationBackend, WorkerFilter, WorkerRecord, WorkerRegistration
from flat.errors import BackendError, NotStorable, WorkerNotFound
from flat.testing.store_case import refused
from flat.testing.store_values import HOSTILE
from flat.testing.work_case import START, WorkChecks, WorkPlace

LONE = WorkChecks()
SHARED = WorkChecks()


def _worker(worker_id: str = "w1", **facts: Any) -> WorkerRegistration:
    given: dict[str, Any] = {"host": "h", "pid": 7, "capabilities": ("gpu",), "started_at": START, **facts}
    return WorkerRegistration(worker_id=worker_id, **given)


async def _ids(register: RegistrationBackend, **conditions: Any) -> list[str]:
    return [record.worker_id for record in await register.list(WorkerFilter(**conditions))]


async def _record(register: RegistrationBackend, worker_id: str = "w1") -> WorkerRecord:
    record = await register.get(worker_id)
    assert record is not None, f"{worker_id} is gone"
    return record


@LONE
async def a_registered_worker_is_active_and_heard_of(place: WorkPlace) -> None:
    register = place.registration()
    record = await register.register(_worker(pool_id="images"))
    assert (record.status, record.last_heartbeat, record.metadata) == ("active", START, {})
    assert (record.host, record.pid, record.pool_id, record.started_at) == ("h", 7, "images", START)
    assert tuple(record.capabilities) == ("gpu",)
    assert await _record(register) == record
    assert list(await register.list()) == [record]
    assert WorkerRecord.from_dict(record.to_dict()) == record


@LONE
async def a_registration_is_taken_by_its_shape(place: WorkPlace) -> None:
    class Mine:
        worker_id, host, pid, capabilities, pool_id, started_at = "w1", "h", 1, ["a"], "default", START

    register = place.registration()
    await register.register(Mine())
    assert (await _record(register)).capabilities == ("a",)


@LONE
async def registering_again_replaces_the_record(place: WorkPlace) -> None:
    register = place.registration()
    await register.register(_worker())
    await register.heartbeat("w1", {"a": 1}, current_task_id="t")
    await register.update_status("w1", "lost")
    place.now += 5
    await register.register(_worker(pid=8))
    record = await _record(register)
    assert (record.pid, record.status, record.last_heartbeat) == (8, "active", START + 5)
    assert (record.metadata, record.current_task_id) == ({}, None)


@LONE
async def heartbeats_move_the_time_and_merge_metadata(place: WorkPlace) -> None:
    register = place.registration()
    await register.register(_worker())
    place.now += 10
    await register.heartbeat("w1", {"load": 1, "zone": "a"}, current_task_id="j1")
    place.now += 10
    await register.heartbeat("w1", {"load": 2})
    record = await _record(register)
    assert (record.last_heartbeat, record.metadata) == (START + 20, {"load": 2, "zone": "a"})
    assert record.current_task_id == "j1"
    await register.heartbeat("w1", current_task_id="")
    assert (await _record(register)).current_task_id is None


@LONE
async def a_heartbeat_does_not_bring_back_who_was_declared_lost(place: WorkPlace) -> None:
    register = place.registration()
    await register.register(_worker())
    await register.update_status("w1", "lost")
    await register.heartbeat("w1")
    assert (await _record(register)).status == "lost"


@LONE
async def unknown_workers_are_not_found(place: WorkPlace) -> None:
    register = place.registration()
    assert await register.get("nobody") is None
    for act in (register.heartbeat("nobody"), register.update_status("nobody", "lost")):
        async with refused(WorkerNotFound):
            await act
    async with refused(KeyError):
        await register.heartbeat("nobody")


@LONE
async def workers_are_listed_by_what_is_asked_for(place: WorkPlace) -> None:
    register = place.registration()
    await register.register(_worker("c", capabilities=("gpu", "big")))
    await register.register(_worker("a", capabilities=(), pool_id="images"))
    await register.register(_worker("b", capabilities=("gpu-2",)))
    await register.update_status("b", "terminated")
    await register.update_status("a", "lost")
    assert await _ids(register) == ["a", "b", "c"]
    assert await _ids(register, status="active") == ["c"]
    assert await _ids(register, status=["lost", "active"]) == ["a", "c"]
    assert await _ids(register, status=[]) == []
    assert await _ids(register, capability="gpu") == ["c"]
    assert await _ids(register, capability='u","b') == []
    assert await _ids(register, pool_id="images") == ["a"]
    assert await _ids(register, pool_id="images", status="active") == []


@LONE
async def stale_workers_are_those_not_heard_of(place: WorkPlace) -> None:
    register = place.registration()
    await register.register(_worker("old"))
    place.now += 100
    await register.register(_worker("new"))
    place.now += 10
    assert await _ids(register, stale_threshold_seconds=60) == ["old"]
    assert await _ids(register, stale_threshold_seconds=110) == []
    assert await _ids(register, stale_threshold_seconds=5) == ["new", "old"]
    assert await _ids(register, stale_threshold_seconds=0) == ["new", "old"]
    await register.heartbeat("old")
    assert await _ids(register, stale_threshold_seconds=60) == []


@LONE
async def hostile_worker_names_are_names(place: WorkPlace) -> None:
    register = place.registration()
    names = [name for name in HOSTILE if name]
    for name in names:
        await register.register(_worker(name, host=name, capabilities=(name,), pool_id=name))
        await register.update_status(name, name)
    for name in names:
        assert await _ids(register, status=name, capability=name, pool_id=name) == [name]
    async with refused(BackendError):
        await register.register(_worker(""))
    for bad in (_worker("half \ud800"), _worker("w", host="\ud800"), _worker("w", capabilities=("\ud800",))):
        async with refused(NotStorable):
            await register.register(bad)
    assert len(await register.list()) == len(names)


@LONE
async def metadata_are_json(place: WorkPlace) -> None:
    register = place.registration()
    await register.register(_worker())
    async with refused(NotStorable):
        await register.heartbeat("w1", {"x": object()})
    assert (await _record(register)).metadata == {}


@SHARED
async def another_object_sees_the_same_workers(place: WorkPlace) -> None:
    mine, theirs = place.registration(), place.registration()
    await mine.register(_worker())
    await theirs.heartbeat("w1", {"seen": True})
    await theirs.update_status("w1", "terminating")
    record = await _record(mine)
    assert (record.status, record.metadata) == ("terminating", {"seen": True})
