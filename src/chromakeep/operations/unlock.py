"""unlock: end the sessions that dead writers left behind, so that no prune waits for them."""

from __future__ import annotations

import msgspec

from chromakeep.errors import UsageError
from chromakeep.repository.repository import Repository
from chromakeep.repository.sessions import fence, is_dead, open_sessions


class UnlockReport(msgspec.Struct, frozen=True):
    """Sessions ended (in a dry run: that would be), and those left because their writer may be alive."""

    fenced: tuple[str, ...]
    left: tuple[str, ...]
    dry_run: bool


def unlock(repository: Repository, *, everything: bool = False, dry_run: bool = False) -> UnlockReport:
    """Fence the sessions whose process is known to be gone; with ``everything``, all of them.

    Always safe: a writer that was alive after all finds at its commit that it was fenced, publishes nothing, and
    starts again. Prune does this by itself for sessions without a sign of life for an hour.
    """
    found = open_sessions(repository)
    if found and everything and not repository.config.conditional_put:
        raise UsageError(
            "this store cannot fence a living writer (its put-if-absent does not hold)",
            hint="stop all writers first, then delete the objects under sessions/ by hand",
        )
    ended = [i for i, info in sorted(found.items()) if everything or is_dead(info)]
    if not dry_run:
        ended = [identity for identity in ended if fence(repository, identity)]
        for identity in ended:
            repository.store.delete(f"sessions/{identity}")
    return UnlockReport(tuple(ended), tuple(i for i in sorted(found) if i not in ended), dry_run)
