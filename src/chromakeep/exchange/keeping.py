"""What is replaced is kept beside, as ``NAME.old-TIME``, under which nobody reads it as data.

It has that name, too, before the new one gets its own: at every moment the final name leads to one of the two, whole,
and the old one can be found. Only where the file system has no hard links the old one is renamed, and for a moment
nothing has the final name.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from chromakeep.errors import ChromakeepError
from chromakeep.events import Noted
from chromakeep.exchange.files import old, publish_file, publish_folder, remove, sync_folder

OLD = ".old-"
_LONGEST = 220  # bytes of a name that gets more; a file system takes 255


def free_name(folder: Path, name: str) -> Path:
    """A name that nothing has, for what ``name`` is now in that folder."""
    stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
    for n in range(1000):
        candidate = folder / f"{name}{OLD}{stamp}{f'.{n}' if n else ''}"
        if not os.path.lexists(candidate):
            return candidate
    raise ChromakeepError(f"{folder / name}: no free name to keep it under", hint="remove some of its .old- copies")


def replace_file(new: Path, final: Path) -> Path | None:
    """Give a durable file its name; where what had it is now, None if there was nothing."""
    if not os.path.lexists(final):
        publish_file(new, final)
        return None
    kept = _second_name(final, os.link)
    if kept is None:
        return _moved(new, final)
    publish_file(new, final)
    return kept


def replace_folder(new: Path, final: Path, *, witness: str) -> Path:
    """Give a durable directory its name; where the one that had it is now. ``witness``: a file in it that no other one
    has, by which it is known again."""
    kept = _second_name(final, _linked, witness)
    if kept is None:
        return _moved(new, final)
    publish_folder(new, final)
    return kept


def noted(final: Path, kept: Path) -> Noted:
    """Where it is, for a person: it takes room. A warning, as those are told without a terminal, too."""
    return Noted(f"what was at {final} is kept as {kept}; delete it when you do not need it", "warning")


def _second_name(final: Path, link: Callable[[Path, Path], object], witness: str = "") -> Path | None:
    """The lasting name of what is there, beside its own, which a process that died may have given it already; None
    where there are no links."""
    for known in final.parent.glob(f"{glob.escape(_stem(final))}{OLD}*"):
        if _is_same(known / witness, final / witness):
            return known
    half = old(final)
    remove(half)
    try:
        link(final, half)
    except OSError:
        remove(half)
        return None
    kept = free_name(final.parent, _stem(final))
    os.rename(half, kept)  # noqa: PTH104 - the name by which tests find it
    sync_folder(final.parent)
    return kept


def _linked(folder: Path, new: Path) -> None:
    shutil.copytree(folder, new, symlinks=True, copy_function=os.link)
    for each, _, _ in os.walk(new):
        sync_folder(Path(each))


def _moved(new: Path, final: Path) -> Path:
    kept = free_name(final.parent, _stem(final))
    os.rename(final, kept)  # noqa: PTH104
    sync_folder(final.parent)
    try:
        os.rename(new, final)  # noqa: PTH104
    except OSError:
        os.rename(kept, final)  # noqa: PTH104
        raise
    sync_folder(final.parent)
    return kept


def _stem(final: Path) -> str:
    return os.fsencode(final.name)[:_LONGEST].decode(errors="ignore")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False
