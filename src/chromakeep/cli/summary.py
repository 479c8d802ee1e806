"""Summary: collections, a snapshot, a repository or a directory in the words of ``show`` and ``backup``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.cli import output
from chromakeep.cli.output import Reply
from chromakeep.errors import SourceError
from chromakeep.records import Collection
from chromakeep.words import plural

if TYPE_CHECKING:
    from chromakeep.chroma.inspection import Inspection
    from chromakeep.repository import Repository, Snapshot

NAMED = 5  # collections named in a one-line summary


def label(collection: Collection) -> str:
    """The name, with tenant and database before it where they are not Chroma's defaults."""
    where = (collection.tenant, collection.database)
    if where == ("default_tenant", "default_database"):
        return collection.name
    return f"{collection.tenant}/{collection.database}/{collection.name}"


def collections(found: Sequence[Collection]) -> str:
    """``12,423 records in 2 collections (books 8,541 - laws 3,882)``."""
    total = plural(sum(c.count for c in found), "record")
    names = [f"{output.printable(label(c))} {c.count:,}" for c in found[:NAMED]]
    if len(found) > NAMED:
        names.append(f"and {len(found) - NAMED} more")
    listed = f" ({' - '.join(names)})" if names else ""
    return f"{total} in {plural(len(found), 'collection')}{listed}"


def _table(found: Sequence[Collection]) -> str:
    rows = [(label(c), f"{c.count:,}", str(c.dimension or "-"), c.space, c.model or "-") for c in found]
    return output.table(("collection", "records", "dimension", "space", "model"), rows, "records dimension")


def public(found: Snapshot) -> dict[str, object]:
    """The snapshot's JSON: all of it but how its files are stored."""
    import msgspec

    fields: dict[str, object] = msgspec.to_builtins(found)
    return {**fields, "files": len(found.files)}


def snapshot(found: Snapshot) -> Reply:
    """One snapshot and its collections."""
    text = (
        f"snapshot {found.id}\n"
        f"  taken   {output.when(found.time)} of {found.source} on {found.hostname}, "
        f"in {output.duration(found.seconds)}\n"
        f"  size    {output.size(found.total_bytes)}, {output.size(found.new_bytes)} new\n"
        f"  by      chromakeep {found.program_version}, Chroma {found.chroma_version}\n"
    )
    return Reply({"kind": "snapshot", **public(found)}, text + _table(found.collections))


def repository(opened: Repository, address: str) -> Reply:
    """A repository and its newest snapshot."""
    found = opened.snapshots()
    newest = found[-1] if found else None
    data = {
        "kind": "repository",
        "repository": address,
        "encrypted": opened.config.encrypted,
        "snapshots": len(found),
        "newest": public(newest) if newest else None,
    }
    text = f"repository {address}: {plural(len(found), 'snapshot')}"
    text += ", encrypted" if opened.config.encrypted else ""
    if newest:
        text += f"; the oldest of {output.when(found[0].time)}, the newest:\n{snapshot(newest).text}"
    return Reply(data, text)


def directory(path: Path, size: int, found: Inspection) -> Reply:
    """A Chroma directory, its collections and what is wrong with it."""
    lines = [f"Chroma directory {path}: {collections(found.collections)}, {output.size(size)}, Chroma {found.version}"]
    if found.collections:
        lines.append(_table(found.collections))
    told = [("problem", problem) for problem in found.problems] + [("warning", warning) for warning in found.warnings]
    for kind, problem in told:
        where = problem.collection or problem.file or "directory"
        lines.append(f"{kind}: {output.printable(where)}: {output.printable(problem.message)}")
    status = SourceError.exit_status if found.problems else 0
    data = {
        "kind": "directory",
        "directory": str(path),
        "total_bytes": size,
        "chroma_version": found.version,
        "collections": found.collections,
        "problems": found.problems,
        "warnings": found.warnings,
    }
    return Reply(data, "\n".join(lines), status)
