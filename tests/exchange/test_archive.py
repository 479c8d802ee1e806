"""Archive directories: parts, the manifest that makes one, and what must not be believed."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from blake3 import blake3

from chromakeep.errors import (
    RepositoryBusy,
    SourceError,
    TargetNotEmpty,
    UnsupportedFormat,
    UsageError,
    VerificationFailed,
)
from chromakeep.exchange.archive import ParquetArchiveSource
from chromakeep.exchange.archive_sink import ParquetArchiveSink
from chromakeep.exchange.files import remove
from chromakeep.exchange.open import sink_of, source_of
from chromakeep.records import Definition
from chromakeep.testing.specimens import assert_same, held, ordinary, records_of
from exchange.scenes import SAMPLE, at, cut, listing, read, written

ID = "0f0e0d0c-1111-2222-3333-444455556666"


def archive(folder: Path, *definitions: Definition, records: int = 3000, part_bytes: int = 40_000) -> Path:
    """An archive of these collections, in several parts each."""
    with closing(ParquetArchiveSink(folder / "x.parquet", part_bytes=part_bytes)) as sink:
        for definition in definitions or (SAMPLE,):
            intake = sink.collection(definition)
            for batch in cut(ordinary(records), 500):
                intake.write(batch)
            intake.finish()
        sink.publish()
    return folder / "x.parquet"


def edited(place: Path, **changes: Any) -> None:
    """Change what the manifest says of its first collection."""
    found = json.loads((place / "MANIFEST.json").read_text())
    found["collections"][0].update(changes)
    (place / "MANIFEST.json").write_text(json.dumps(found))


def test_what_is_in_one(tmp_path: Path) -> None:
    """A directory for each collection, a manifest that has the count, size and hash of each part; no more."""
    place = archive(tmp_path, Definition("my books", ID, dimension=3, metadata={"a": 1}))
    (folder,) = [path for path in place.iterdir() if path.is_dir()]
    assert folder.name == "my_books~0f0e0d0c"
    parts = sorted(path.name for path in folder.glob("*.parquet"))
    assert len(parts) > 2 and parts[0] == "part-00000.parquet"
    assert listing(place) == sorted(
        ["MANIFEST.json", folder.name, *(f"{folder.name}/{name}" for name in [*parts, "collection.json"])]
    )
    found = json.loads((place / "MANIFEST.json").read_text())
    assert (found["format"], found["version"]) == ("chromakeep-parquet", 1)
    (entry,) = found["collections"]
    assert entry == json.loads((folder / "collection.json").read_text())
    assert entry["definition"]["metadata"] == {"a": 1} and entry["definition"]["id"] == ID
    assert (entry["directory"], entry["count"]) == (folder.name, 3000)
    for part in entry["parts"]:
        data = (folder / part["name"]).read_bytes()
        assert (part["bytes"], part["blake3"]) == (len(data), blake3(data).hexdigest())
        assert part["records"] == pq.read_metadata(folder / part["name"]).num_rows
    assert listing(tmp_path) == ["x.parquet", *(f"x.parquet/{name}" for name in listing(place))]


def test_each_part_is_complete_by_itself(tmp_path: Path) -> None:
    """With the definition, the same columns as the others, and its own number of records."""
    place = archive(tmp_path)
    parts = sorted(place.glob("*/*.parquet"))
    assert len({str(pq.read_schema(part).remove_metadata()) for part in parts}) == 1
    total = 0
    for part in parts:
        definition, batches = read(str(part))
        assert definition.name == "sample" and definition.dimension == 3
        total += sum(map(len, batches))
        assert definition.count == sum(map(len, batches))
    assert total == 3000


def test_an_empty_collection_has_one_empty_part(tmp_path: Path) -> None:
    """So that a pattern over its directory finds a table."""
    place = Path(written(at(tmp_path, "x.parquet/"), Definition("none")))
    (part,) = place.glob("*/*.parquet")
    assert pq.read_table(part).num_rows == 0


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", ".", "..", "a/b\0c", "CON", "x" * 500, "日本", "~", "-rf", "a\nb"]
)
def test_any_name_becomes_one_directory(name: str, tmp_path: Path) -> None:
    """Below the archive, of plain ASCII, and the name itself comes back."""
    place = archive(tmp_path, Definition(name, dimension=3), Definition(name, database="other", dimension=3), records=5)
    folders = [path.name for path in place.iterdir() if path.is_dir()]
    assert len(folders) == 2 and all(len(each) < 90 and each.isascii() and each[0].isalnum() for each in folders)
    assert {each.name for each in ParquetArchiveSource(place).definitions()} == {name}
    assert listing(tmp_path)[0] == "x.parquet"


def test_collections_that_would_share_a_directory(tmp_path: Path) -> None:
    """Of the same id and almost the same name: each has its own."""
    definitions = [Definition("a b", ID, dimension=3), Definition("a_b", ID, dimension=3)]
    place = archive(tmp_path, *definitions, records=10)
    with closing(source_of(f"{place}/")) as source:
        for definition in source.definitions():
            assert_same(records_of(ordinary(10)), held(source, definition))
        assert len(source.definitions()) == 2


# -- what is there already --------------------------------------------------------------------------------------------


def test_another_collection_is_added(tmp_path: Path) -> None:
    """What an archive holds besides stays, byte for byte, whether one is added or replaced."""
    place = archive(tmp_path, Definition("one", dimension=3), Definition("two", dimension=3), records=50)
    before = {path: path.read_bytes() for path in place.glob("one~*/*")}
    written(f"{place}/", Definition("three", dimension=3), [ordinary(7)])
    written(f"{place}/", Definition("two", dimension=2), [ordinary(5, 2)], conflict="replace")
    with closing(source_of(f"{place}/")) as source:
        found = {each.name: (each.dimension, each.count) for each in source.definitions()}
        assert found == {"one": (3, 50), "two": (2, 5), "three": (3, 7)}
        assert isinstance(source, ParquetArchiveSource) and source.verify() > 0
    assert {path: path.read_bytes() for path in before} == before
    assert listing(tmp_path)[0] == "x.parquet"


def test_an_archive_is_kept_where_something_of_it_goes(tmp_path: Path) -> None:
    """As a whole: when a collection is replaced, or a file is in it that is none of ours. When one is only added all of
    it is in the new one. What is kept takes no room for what both have."""
    place = archive(tmp_path, Definition("one", dimension=3), Definition("two", dimension=3), records=50)
    written(f"{place}/", Definition("three", dimension=3), [ordinary(7)])
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    names = listing(place)
    written(f"{place}/", Definition("two", dimension=2), [ordinary(5, 2)], conflict="replace")
    (old,) = tmp_path.glob("*.old-*")
    assert listing(old) == names and ParquetArchiveSource(old).verify() > 0
    assert {each.name: each.count for each in ParquetArchiveSource(old).definitions()}["two"] == 50
    for path in old.glob("one~*/*.parquet"):
        assert path.samefile(place / path.relative_to(old))
    remove(old)
    (place / "README").write_text("ours")
    written(f"{place}/", Definition("four", dimension=3), [ordinary(7)])
    (old,) = tmp_path.glob("*.old-*")
    assert (old / "README").read_text() == "ours" and not (place / "README").exists()


def test_what_is_no_archive_is_left_alone(tmp_path: Path) -> None:
    """A directory with anything in it, and a file, are not written over; an empty directory is used."""
    (tmp_path / "x.parquet").mkdir()
    (tmp_path / "x.parquet/precious").write_text("data")
    for conflict in ("fail", "replace"):
        with closing(sink_of(at(tmp_path, "x.parquet/"))) as sink, pytest.raises(UsageError, match="no archive"):
            sink.collection(SAMPLE, conflict=conflict)
    assert listing(tmp_path) == ["x.parquet", "x.parquet/precious"]
    (tmp_path / "y.parquet").write_text("data")
    with pytest.raises(UsageError, match="is a file"):
        sink_of(at(tmp_path, "y.parquet/"))
    (tmp_path / "z.parquet").mkdir()
    assert read(written(at(tmp_path, "z.parquet/"), SAMPLE, [ordinary(3)]))[0].count == 3


def test_a_copy_under_way_is_not_disturbed(tmp_path: Path) -> None:
    """A second writer is told, and a second sink that only looks is not in the way."""
    for name in ("x.parquet/", "x.parquet", "x.jsonl"):
        with closing(sink_of(at(tmp_path, name))) as one, closing(sink_of(at(tmp_path, name))) as two:
            intake = one.collection(SAMPLE)
            with pytest.raises(RepositoryBusy):
                two.collection(SAMPLE)
            with pytest.raises(RepositoryBusy):
                two.publish()
            intake.write(ordinary(3))
            intake.finish()
            one.publish()
        assert read(at(tmp_path, name))[0].count == 3
        remove(tmp_path / name)


# -- what must not be believed ----------------------------------------------------------------------------------------


def refused(place: Path, told: str, kind: type[Exception] = SourceError) -> None:
    """Reading it ends in one line."""
    with pytest.raises(kind, match=told) as raised:
        read(f"{place}/")
    assert len(str(raised.value).splitlines()) == 1


def test_one_without_a_manifest(tmp_path: Path) -> None:
    """It was not finished."""
    place = archive(tmp_path)
    (place / "MANIFEST.json").unlink()
    refused(place, "no archive")
    (tmp_path / "none.parquet").mkdir()
    refused(tmp_path / "none.parquet", "no archive")


@pytest.mark.parametrize("directory", ["..", ".", "", "/etc", "a/b", "../x.parquet", "a\0", ".hidden", "x" * 200])
def test_directories_that_lead_elsewhere(directory: str, tmp_path: Path) -> None:
    """A name in the manifest is one below the archive."""
    place = archive(tmp_path)
    edited(place, directory=directory)
    refused(place, "names files")


@pytest.mark.parametrize(
    "name", ["../part-00000.parquet", "/etc/passwd", "part-0.parquet", "part-00000.parquet\n", "part-00001.parquet"]
)
def test_parts_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    """Nor is a part anything but one, and each is there once."""
    place = archive(tmp_path)
    parts = json.loads((place / "MANIFEST.json").read_text())["collections"][0]["parts"]
    edited(place, parts=[{**parts[0], "name": name}, *parts[1:]])
    refused(place, "names files")


def test_manifests_that_are_none(tmp_path: Path) -> None:
    """Other JSON, none at all, of another version, with sums that are wrong or a collection twice."""
    place = archive(tmp_path)
    good = (place / "MANIFEST.json").read_text()
    for text, told, kind in (
        ("", "damaged", SourceError),
        (good[:-20], "damaged", SourceError),
        ("[]", "damaged", SourceError),
        ("[" * 100_000, "damaged", SourceError),
        (good.replace('"version": 1', '"version": 2', 1), "reads 'chromakeep-parquet' 1", UnsupportedFormat),
        (good.replace('"count": 3000', '"count": 3001'), "do not add up", SourceError),
        (good.replace('"name": "sample"', '"name": ""'), "no name", SourceError),
    ):
        (place / "MANIFEST.json").write_text(text)
        refused(place, told, kind)
    found = json.loads(good)
    found["collections"] *= 2
    (place / "MANIFEST.json").write_text(json.dumps(found))
    refused(place, "twice")


def test_parts_that_are_not_as_they_were(tmp_path: Path) -> None:
    """Missing or of another size: found at once. Of another content: found by verify."""
    place = archive(tmp_path)
    part = sorted(place.glob("*/*.parquet"))[1]
    data = part.read_bytes()
    part.write_bytes(data[:-1])
    refused(place, "bytes, and had")
    part.unlink()
    refused(place, "no such file")
    os.mkfifo(part)
    refused(place, "0 bytes, and had")
    part.unlink()
    part.write_bytes(data)
    source = ParquetArchiveSource(place)
    assert source.verify() == sum(path.stat().st_size for path in place.glob("*/*.parquet"))
    part.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(VerificationFailed, match="not as it was written"):
        source.verify()
    part.write_bytes(sorted(place.glob("*/*.parquet"))[0].read_bytes().ljust(len(data), b"x")[: len(data)])
    refused(place, "damaged|bytes|records")


def test_marks_of_others(tmp_path: Path) -> None:
    """What is no mark, or one of what is gone, is refused and changes nothing."""
    with closing(sink_of(at(tmp_path, "x.parquet/"))) as sink:
        intake = sink.collection(SAMPLE)
        intake.write(ordinary(20))
        good = intake.mark()
    with closing(sink_of(at(tmp_path, "x.parquet/"))) as sink:
        for mark in (
            1,
            "x",
            {},
            {"directory": "../../tmp", "parts": []},
            {**good, "directory": "other"},
            {**good, "next": {"bytes": 10**9, "journal": good["next"]["journal"]}},
            {**good, "next": {"bytes": good["next"]["bytes"] - 1, "journal": good["next"]["journal"]}},
            {**good, "next": {"bytes": good["next"]["bytes"], "journal": 0}},
            {**good, "next": {"bytes": good["next"]["bytes"], "journal": -1}},
            {**good, "next": {"bytes": -1, "journal": 0}},
            {**good, "next": {"bytes": good["next"]["bytes"], "journal": 10}},
            {**good, "next": {"bytes": good["next"]["bytes"], "journal": 10**9}},
            {**good, "parts": [{"name": "part-00000.parquet", "records": 1, "bytes": 1, "blake3": ""}]},
        ):
            with pytest.raises(UsageError):
                sink.collection(SAMPLE, mark=mark)
        sink.collection(SAMPLE, mark=good).finish()
        sink.publish()
    assert read(at(tmp_path, "x.parquet/"))[0].count == 20
    with pytest.raises(TargetNotEmpty):
        written(at(tmp_path, "x.parquet/"), SAMPLE)
