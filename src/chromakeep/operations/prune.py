"""prune: keep the snapshots a policy names, delete the others and all that only they needed, and trim the log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import msgspec

from chromakeep.errors import CorruptObject, UsageError
from chromakeep.events import Noted, Observer, PhaseStarted, ignore
from chromakeep.repository.collector import collect
from chromakeep.repository.log import Log
from chromakeep.repository.merging import merge
from chromakeep.repository.repository import Repository
from chromakeep.repository.snapshots import Snapshot, now
from chromakeep.repository.trimming import Trimming, plan


class Retention(msgspec.Struct, frozen=True):
    """How many to keep: the newest ``last``; the newest of each of so many hours, days, ISO weeks, months that have
    one (UTC); and all not older than ``within``, counted from the newest snapshot (as restic counts)."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    within: timedelta | None = None


class KeptSnapshot(msgspec.Struct, frozen=True):
    """A snapshot that stays, and why."""

    id: str
    reasons: tuple[str, ...]


class PruneReport(msgspec.Struct, frozen=True):
    """What was kept and removed; objects and bytes deleted, and how many of the objects were of the log;
    ``deferred``: writers were at work, deleting is left to the next prune (nothing is lost by it)."""

    kept: tuple[KeptSnapshot, ...]
    removed: tuple[str, ...]
    deleted_objects: int
    deleted_log_objects: int
    freed_bytes: int
    repacked_bytes: int
    deferred: bool
    dry_run: bool


_PERIODS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda t: (t.year, t.month, t.day, t.hour),
    "daily": lambda t: (t.year, t.month, t.day),
    "weekly": lambda t: tuple(t.isocalendar()[:2]),
    "monthly": lambda t: (t.year, t.month),
}


def retained(snapshots: list[Snapshot], policy: Retention) -> dict[str, tuple[str, ...]]:
    """Ids to keep with their reasons. ``snapshots`` oldest first."""
    reasons: dict[str, list[str]] = {}
    newest_first = snapshots[::-1]
    for number, snapshot in enumerate(newest_first[: policy.last], 1):
        reasons.setdefault(snapshot.id, []).append(f"last {number}")
    for name, period in _PERIODS.items():
        seen: set[tuple[int, ...]] = set()
        for snapshot in newest_first:
            key = period(_time(snapshot))
            if key not in seen and len(seen) < getattr(policy, name):
                seen.add(key)
                reasons.setdefault(snapshot.id, []).append(f"{name} {len(seen)}")
    if policy.within and snapshots:
        newest = min(_time(snapshots[-1]), now())  # one of a time to come does not make all others old
        for snapshot in newest_first:
            if newest - _time(snapshot) <= policy.within:
                reasons.setdefault(snapshot.id, []).append("within")
    return {i: tuple(r) for i, r in reasons.items()}


def prune(
    repository: Repository,
    policy: Retention,
    *,
    dry_run: bool = False,
    wait: float = 60.0,
    observer: Observer = ignore,
) -> PruneReport:
    """Apply ``policy``. Safe beside backups and restores of what stays; see ``repository.collector`` for why.

    Raises ``UsageError`` for a policy that keeps nothing, ``RepositoryBusy`` while another prune is at work, and
    ``VerificationFailed`` when the repository is damaged: what is needed cannot be known then, and nothing is deleted.
    """
    observer(PhaseStarted("prune"))
    snapshots = repository.snapshots()
    keep = retained(snapshots, policy)
    if snapshots and not keep:
        raise UsageError("that policy keeps no snapshot at all", hint="say for example --keep-last 1")
    trim = plan(repository, snapshots, _fine(snapshots, keep))
    keep |= dict.fromkeys(trim.needed - keep.keys(), ("log",))
    remove = [s for s in snapshots if s.id not in keep]
    trimming = Trimming(repository, trim, [s for s in snapshots if s.id in keep])
    done = collect(repository, remove, trimming, wait=wait, dry_run=dry_run)
    if not dry_run:
        _merge(repository, observer)
    return PruneReport(
        kept=tuple(KeptSnapshot(s.id, keep[s.id]) for s in snapshots if s.id in keep),
        removed=tuple(s.id for s in remove),
        deleted_objects=done.deleted_objects,
        deleted_log_objects=done.log_objects,
        freed_bytes=done.freed_bytes,
        repacked_bytes=done.repacked_bytes,
        deferred=done.deferred,
        dry_run=dry_run,
    )


def _fine(snapshots: list[Snapshot], keep: dict[str, tuple[str, ...]]) -> set[str]:
    """Ids of the snapshots behind which every moment stays: the newest, and those kept for being recent."""
    recent = {i for i, reasons in keep.items() if any(r == "within" or r.startswith("last ") for r in reasons)}
    return recent | {s.id for s in snapshots[-1:]}


def _merge(repository: Repository, observer: Observer) -> None:
    """Merge what is left of the log, but of what is behind the newest snapshot of an epoch that goes on."""
    log = Log(repository)
    for epoch, pieces in log.survey().items():
        upto = None if log.end_of(pieces)[1] else max(
            (s.log_number for s in repository.snapshots() if s.epoch == epoch), default=0
        )  # fmt: skip
        try:
            merge(repository, epoch, upto, least=2)
        except CorruptObject as error:
            observer(Noted(f"the log was not merged: {error}", "warning"))


def _time(snapshot: Snapshot) -> datetime:
    return datetime.fromisoformat(snapshot.time.replace("Z", "+00:00")).astimezone(timezone.utc)
