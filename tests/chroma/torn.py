"""What a kill inside a persist leaves, put together from both sides of a real one (``make_torn_scene``)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.hnsw import FILES

SCENES = [("l2", "mixed"), ("cosine", "adds"), ("cosine", "add-and-delete"), ("l2", "updates")]
ORDER = ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle")
assert set(ORDER) == set(FILES)


def segment_of(directory: Path) -> tuple[str, Path]:
    """The collection's id and the directory of its index."""
    with Catalog(directory) as catalog:
        entry = next(e for e in catalog.entries if e.name == "torn")
    return entry.id, directory / str(entry.vector_segment)


def states(scene: Path, into: Path) -> Iterator[tuple[str, Path, bool]]:
    """Name, directory and whether the collection is broken, for a kill at every file that Chroma writes, in its order.

    Chroma writes elements in place, and truncates the pickle before it writes it. ``broken`` is what 1.5.9 did with
    such states, made by a real SIGKILL at the same system calls (strace): replay into an index that is ahead of its id
    map fails at the first write to an element that is marked deleted. One exception:
    while data_level0.bin is shorter than header.bin says, 1.5.9 opens the collection with elements that nobody wrote,
    and dies of SIGSEGV at the opening after the next persist.
    """
    queued, after = segment_of(scene / "queued")[1], segment_of(scene / "after")[1]
    grown = (after / "length.bin").stat().st_size > (queued / "length.bin").stat().st_size
    deletes = "delete" in scene.name or "mixed" in scene.name
    done: list[str] = []
    for name in ORDER:
        for part in ("none", "half") if name != "index_metadata.pickle" else ("old", "none", "half"):
            directory = into / f"{scene.name}-{name}-{part}"
            shutil.copytree(scene / "queued", directory)
            target = directory / queued.name
            for written in done:
                shutil.copy(after / written, target / written)
            old, new = (queued / name).read_bytes(), (after / name).read_bytes()
            half = len(new) // 2
            if name == "index_metadata.pickle":
                (target / name).write_bytes({"old": old, "none": b"", "half": new[:half]}[part])
            elif part == "half":
                (target / name).write_bytes(new[:half] + old[half:])
            before_anything = not done and (part == "none" or new[:half] + old[half:] == old)
            cut = name == "index_metadata.pickle" and part != "old"
            short = grown and not before_anything and name != "index_metadata.pickle"
            buried = deletes and (name not in ORDER[:2] or (name == "data_level0.bin" and part == "half"))
            broken = cut or short or buried
            yield directory.name, directory, broken
        done.append(name)
