"""Every kind of exchange file passes the shipped SourceSuite and SinkSuite."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from chromakeep.exchange.archive_sink import ParquetArchiveSink
from chromakeep.exchange.open import ExchangeSink, sink_of, source_of
from chromakeep.records import Source
from chromakeep.testing.records_suite import Contents, SinkSuite, SourceSuite
from chromakeep.testing.specimens import ordinary
from exchange.scenes import at, written


class _Sources(SourceSuite):
    name: str
    many = 2100

    def fill(self, tmp_path: Path, contents: Contents) -> None:
        with closing(sink_of(at(tmp_path, self.name))) as sink:
            for definition, records in contents:
                intake = sink.collection(definition)
                if records is not None:
                    intake.write(records)
                intake.finish()
            sink.publish()

    def make_source(self, tmp_path: Path) -> Source:
        return source_of(at(tmp_path, self.name))

    def change(self, tmp_path: Path) -> None:
        written(at(tmp_path, self.name), self.definition(), [ordinary(6)], conflict="replace")


class TestParquetFileSource(_Sources):
    name = "x.parquet"
    several = False


class TestParquetArchiveSource(_Sources):
    name = "x.parquet/"


class TestJsonlSource(_Sources):
    name = "x.jsonl"


class TestPackedJsonlSource(_Sources):
    name = "x.jsonl.zst"


class _Sinks(SinkSuite):
    name: str
    many = 2100
    conflicts = ("fail", "replace")

    def make_sink(self, tmp_path: Path) -> ExchangeSink:
        sink = self.open(tmp_path)
        if (last := getattr(self, "last", None)) is not None:
            last._work.close()  # the suite leaves some behind as if their process had died, and then nobody has a lock
        self.last: Any = sink
        return sink

    def open(self, tmp_path: Path) -> ExchangeSink:
        return sink_of(at(tmp_path, self.name))

    def read_back(self, tmp_path: Path) -> Source | None:
        return source_of(at(tmp_path, self.name)) if (tmp_path / self.name).exists() else None


class TestParquetFileSink(_Sinks):
    name = "x.parquet"
    several = False


class TestParquetArchiveSink(_Sinks):
    name = "x.parquet/"


class TestArchiveOfManyParts(_Sinks):
    """Each part has some hundred records."""

    name = "x.parquet/"

    def open(self, tmp_path: Path) -> ExchangeSink:
        return ParquetArchiveSink(tmp_path / "x.parquet", part_bytes=20_000)


class TestJsonlSink(_Sinks):
    name = "x.jsonl"


class TestPackedJsonlSink(_Sinks):
    name = "x.jsonl.zst"
