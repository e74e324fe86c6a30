"""Who drives an execution in this process: claimed by its id, found by it, and given back at the end.

Written as plain context managers: one is entered for every start and every resume, where those made of generators cost
more than the writing of a commit.
"""

from __future__ import annotations

from types import TracebackType

import anyio

from flat.drivers.keeper import Keeper
from flat.drivers.local import Drive
from flat.errors import ExecutionBusy


class Claimed:
    """Within one process the lease does not tell one driver from another: this does."""

    __slots__ = ("_claims", "_id")

    def __init__(self, claims: set[str], execution_id: str) -> None:
        self._claims, self._id = claims, execution_id

    def __enter__(self) -> None:
        if self._id in self._claims:
            raise ExecutionBusy(self._id, "this very process")
        self._claims.add(self._id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._claims.remove(self._id)


class Found:
    """A drive that can be found, and so cancelled, by its execution's id."""

    __slots__ = ("_drive", "_drives", "_key")

    def __init__(self, drives: dict[str, Drive], key: str, drive: Drive) -> None:
        self._drives, self._key, self._drive = drives, key, drive

    def __enter__(self) -> Drive:
        self._drives[self._key] = self._drive
        return self._drive

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._drives[self._key]


class Driven(Found):
    """As `Found`; at the end what ran beside is ended, and the lease is given back."""

    __slots__ = ("_beside", "_keeper")

    def __init__(
        self, drives: dict[str, Drive], drive: Drive, keeper: Keeper | None, beside: anyio.CancelScope | None
    ) -> None:
        super().__init__(drives, str(id(drive)) if keeper is None else keeper.lease.execution_id, drive)
        self._keeper, self._beside = keeper, beside

    async def __aenter__(self) -> Drive:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beside is not None:
            self._beside.cancel()
        self.__exit__(kind, error, trace)
        tree, keeper = self._drive.performer.tree, self._keeper
        if tree is None and (keeper is None or keeper.released):
            return
        with anyio.CancelScope(shield=True):
            if tree is not None:
                await tree.close()
            if keeper is not None and not keeper.released:
                await keeper.release()
