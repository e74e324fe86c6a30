"""What a store may offer so that blobs and programs to which nothing refers any more can be taken out.

A store cannot know what refers to what, because it does not look into bodies. Whoever does asks for the names of
all that is kept (first), looks at every execution (second), and has removed what was kept then and is not
referred to now. Between the two another process may store a body that refers to something old: the caller sees to it
that nobody runs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol, runtime_checkable

Kind = Literal["blob", "config"]
DIGEST_LENGTH = 32
"""Of the names that the engine gives. Configs under other names are other people's, and stay."""


@runtime_checkable
class Compactable(Protocol):
    """A store whose file does not shrink by itself."""

    async def compact(self) -> bool:
        """Make it as small as what is in it. False if that cannot be done just now."""
        ...


@runtime_checkable
class Sweepable(Protocol):
    """A store that blobs and configs can be taken out of."""

    async def kept(self, kind: Kind) -> Sequence[str]:
        """The store's own names of all blobs, or of all configs, that have a digest for a name."""
        ...

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        """Remove what has these names, save what is kept under one of the digests `but`. How many that were."""
        ...
