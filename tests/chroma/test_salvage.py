"""Salvage gives of a broken collection every vector that can be proven, and never a wrong one."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chroma.conftest import Known
from chroma.torn import SCENES, segment_of, states
from chromakeep.chroma.hnsw import read_header
from chromakeep.chroma.reader import read_vectors
from chromakeep.chroma.salvage import salvage, salvage_all
from chromakeep.errors import UsageError


def truth(directory: Path) -> dict[str, bytes]:
    """Id -> bytes of the vector, of the collection as Chroma has it after the persist."""
    collection, _ = segment_of(directory)
    return {
        id_: vector.tobytes()
        for ids, vectors in read_vectors(directory, collection)
        for id_, vector in zip(ids, vectors, strict=True)
    }


@pytest.fixture(params=SCENES, ids="-".join)
def scene(request: pytest.FixtureRequest, torn_scene: Callable[[str, str], Path]) -> Path:
    """Both sides of a persist."""
    return torn_scene(*request.param)


def check(directory: Path, right: dict[str, bytes], *, older: Path | None = None) -> tuple[set[str], set[str]]:
    """No vector is wrong and every id is accounted for. Returns the ids salvaged and missing."""
    found = salvage_all(directory, segment_of(directory)[0], older=older)
    wrong = [id_ for id_, vector in zip(found.ids, found.vectors, strict=True) if vector.tobytes() != right[id_]]
    assert wrong == []
    assert len(found.ids) == len(set(found.ids)) == len(found.sources)
    assert {*found.ids, *found.missing} == right.keys() and not set(found.ids) & set(found.missing)
    return set(found.ids), set(found.missing)


def test_all_vectors_survive_a_kill_inside_a_persist(scene: Path, tmp_path: Path) -> None:
    """Killed at any file: everything is there; without a readable id map with that of the last snapshot."""
    right = truth(scene / "after")
    for name, directory, _ in states(scene, tmp_path):
        found, missing = check(directory, right)
        assert not missing or "pickle" in name, name
        if "pickle-half" in name:  # the ids in the written half, and those in the queue
            assert len(found) > len(right) / 2
        assert check(directory, right, older=scene / "queued")[1] == set(), name


def test_what_only_the_index_has_is_missing_without_an_id_map(scene: Path, tmp_path: Path) -> None:
    """No pickle: the queue's vectors are salvaged, the others named."""
    directory = Path(shutil.copytree(scene / "queued", tmp_path / "copy"))
    (segment_of(directory)[1] / "index_metadata.pickle").write_bytes(b"")
    found = salvage_all(directory, segment_of(directory)[0])
    check(directory, truth(scene / "after"))
    assert set(found.sources) == {"queue"} and len(found.missing) > 700


def test_a_torn_header_costs_nothing(scene: Path, tmp_path: Path) -> None:
    """Where the elements lie follows from the collection's configuration."""
    directory = Path(shutil.copytree(scene / "after", tmp_path / "copy"))
    for header in (b"", b"\xff" * 100, (segment_of(directory)[1] / "header.bin").read_bytes()[:50]):
        (segment_of(directory)[1] / "header.bin").write_bytes(header)
        assert check(directory, truth(scene / "after"))[1] == set()


@pytest.mark.parametrize("part", [0, 1, 7, 13])
def test_cut_off_elements_cost_only_themselves(part: int, scene: Path, tmp_path: Path) -> None:
    """data_level0.bin cut anywhere: the elements before the cut are salvaged, the others missing or in the queue."""
    directory, right = Path(shutil.copytree(scene / "after", tmp_path / "copy")), truth(scene / "after")
    path = segment_of(directory)[1] / "data_level0.bin"
    size = path.stat().st_size
    os.truncate(path, size * part // 13 - (1 if part == 7 else 0))
    found, _ = check(directory, right)
    assert abs(len(found) / len(right) - part / 13) < 0.15


def test_garbage_is_never_taken_for_vectors(scene: Path, tmp_path: Path) -> None:
    """Elements overwritten with zeros or ones are missing: nobody's label is found there."""
    right = truth(scene / "after")
    size = read_header(segment_of(scene / "after")[1]).element_size * 600
    for number, garbage in enumerate((b"\0" * size, b"\xff" * size)):
        directory = Path(shutil.copytree(scene / "after", tmp_path / str(number)))
        with (segment_of(directory)[1] / "data_level0.bin").open("r+b") as file:
            file.write(garbage)
        assert 0 < len(check(directory, right)[1]) < len(right)


def test_an_element_with_another_ones_label_is_nobodys(scene: Path, tmp_path: Path) -> None:
    """Two elements with one label: neither is believed, nor is the one whose label is gone."""
    directory, right = Path(shutil.copytree(scene / "after", tmp_path / "copy")), truth(scene / "after")
    collection, segment = segment_of(directory)
    header = read_header(segment)
    rows = np.memmap(segment / "data_level0.bin", header.element, "r+", shape=(header.count,))
    # Several threads of Chroma fill an index, in any order: some elements are deleted ones, some are in the queue too.
    whole = salvage_all(directory, collection)
    of_index = {id_ for id_, source in zip(whole.ids, whole.sources, strict=True) if source != "queue"}
    names = pickle.loads((segment / "index_metadata.pickle").read_bytes())["label_to_id"]
    places = [n for n, label in enumerate(rows["label"].tolist()) if names.get(label) in of_index]
    one, other = places[500:502]
    both = {names[label] for label in rows["label"][[one, other]].tolist()}
    rows["label"][other] = rows["label"][one]
    rows.flush()
    assert check(directory, right)[1] == both


def test_an_older_map_of_an_emptied_collection_is_not_believed(
    torn_scene: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Labels start anew after all ids were deleted: an older map counts only if some record has been there since."""
    scene = torn_scene("l2", "mixed")
    directory = Path(shutil.copytree(scene / "after", tmp_path / "copy"))
    collection, segment = segment_of(directory)
    (segment / "index_metadata.pickle").unlink()
    re_added = {
        f"r{i}" for i in (*range(190, 200), 220)
    }  # deleted, added again and purged since: no old label of theirs lives
    assert set(salvage_all(directory, collection, older=scene / "queued").missing) == re_added
    with sqlite3.connect(directory / "chroma.sqlite3") as connection:
        connection.execute("UPDATE embeddings SET seq_id = 5000 + id")
    connection.close()
    assert set(salvage_all(directory, collection, older=scene / "queued").sources) <= {"queue"}


def test_a_sound_collection_is_salvaged_whole(random_directories: list[Known]) -> None:
    """On what Chroma can open, salvage gives exactly what Chroma gives, in the same order, some at a time."""
    for known in random_directories:
        for collection, got in known.collections.items():
            pairs = list(salvage(known.directory, collection))
            assert [id_ for ids, _ in pairs for id_ in ids] == got["ids"]
            assert b"".join(vectors.tobytes() for _, vectors in pairs) == got["embeddings"].tobytes()


def test_an_unknown_collection_is_told(random_directories: list[Known]) -> None:
    """No such id: one line."""
    with pytest.raises(UsageError, match="no collection"):
        salvage_all(random_directories[0].directory, "nobody")


def test_vectors_of_another_length_are_not_taken(random_directories: list[Known], tmp_path: Path) -> None:
    """A queue row whose vector has not the collection's dimension gives none."""
    known = random_directories[0]
    directory = Path(shutil.copytree(known.directory, tmp_path / "copy"))
    with sqlite3.connect(directory / "chroma.sqlite3") as connection:
        connection.execute("UPDATE embeddings_queue SET vector = substr(vector, 5) WHERE vector IS NOT NULL")
    connection.close()
    for collection, got in known.collections.items():
        found = salvage_all(directory, collection)
        vectors = dict(zip(got["ids"], got["embeddings"], strict=True))
        assert all(np.array_equal(vectors[id_], vector) for id_, vector in zip(found.ids, found.vectors, strict=True))
        assert "queue" not in found.sources
