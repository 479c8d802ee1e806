"""Gauges of an engine: the database is asked now and then, and what it does not answer is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from chromakeep.engine import Refused
from chromakeep.operations.duty import SERVING, SNAPSHOTS, Duty
from chromakeep.operations.engine_gauges import EngineGauges
from chromakeep.postgres.counts import Counted, Counts

COUNTS = Counts(3, (Counted("t", "d", "books", 12_000, 7_000),))


def duty() -> Duty:
    one = Duty(SNAPSHOTS, None)
    one.role = SERVING
    return one


def test_it_is_asked_once_for_many_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromakeep.operations.engine_gauges.LOOK", 3600.0)  # however long this takes
    asked: list[int] = []

    def count() -> Counts:
        asked.append(1)
        return COUNTS

    gauges = EngineGauges(duty(), count, lambda: 2, tmp_path)
    for _ in range(3):
        found = gauges.read()
        assert (found.ready, found.restarts, found.collections, found.snapshots) == (True, 2, 3, None)
        assert found.records == (("t", "d", "books", 12_000),)
        assert found.waiting == (("t", "d", "books", 7_000),)
        assert found.disk_free
    assert len(asked) == 1


def test_without_an_answer_all_else_is_told() -> None:
    answers: list[Counts | None] = [COUNTS, None]

    def count() -> Counts:
        if found := answers.pop(0):
            return found
        raise Refused(503, "PostgreSQL is away")

    gauges = EngineGauges(duty(), count, lambda: None, None)
    assert gauges.read().collections == 3
    gauges._next = 0.0  # it is time for another look
    found = gauges.read()
    assert (found.role, found.collections, found.records, found.restarts) == (SERVING, None, (), None)
