"""What a person reads: sizes, spans, times and tables."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from chromakeep.cli import output, summary
from chromakeep.records import Collection


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        *[(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9949, "9.9 kB"), (9950, "10 kB")],
        *[(999_499, "999 kB"), (999_500, "1.0 MB"), (79_123_456, "79 MB"), (2 * 10**18, "2000 PB")],
    ],
)
def test_sizes_have_two_digits_or_more_and_a_unit(count: int, shown: str) -> None:
    """Decimal units, as disks and bills count."""
    assert output.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *[(0.0, "0 ms"), (0.004, "4 ms"), (0.0996, "0.1 s"), (0.6, "0.6 s"), (9.96, "10 s"), (119, "119 s")],
        *[(120, "2 m"), (7199, "119 m"), (7200, "2 h"), (172_799, "47 h"), (172_800, "2 d")],
    ],
)
def test_spans(seconds: float, shown: str) -> None:
    """One number and one unit."""
    assert output.duration(seconds) == shown


def test_a_time_is_local_with_its_age() -> None:
    """Ages are never negative, and a time that cannot be read is shown as it is."""
    now = datetime(2026, 11, 21, 3, 0, tzinfo=timezone.utc)
    assert output.when("2026-11-21T02:45:00.123Z", now).endswith("(14 m ago)")
    assert output.when("2026-11-21T03:00:05.000Z", now).endswith("(0 s ago)")
    assert output.when("yesterday", now) == "yesterday"


def test_columns_line_up() -> None:
    """Numbers to the right, words to the left, no blanks at the end."""
    made = output.table(("name", "n"), [("a", "1"), ("long", "1,000")], "n")
    assert made == "name      n\na         1\nlong  1,000"


def test_names_cannot_drive_the_terminal() -> None:
    """Control characters in the names of other people's collections are shown, not obeyed."""
    evil = Collection("id", "a\x1b[2Jb\nc", "default_tenant", "default_database", 3)
    shown = summary.collections([evil])
    assert shown == "3 records in 1 collection (a\\x1b[2Jb\\x0ac 3)"
    assert "\x1b" not in output.table(("x",), [("\x1b[31m",)])


def test_a_summary_names_a_few_and_counts_the_rest() -> None:
    """Other databases are named with their path."""
    made = [Collection("id", f"c{n}", "default_tenant", "default_database", 1000) for n in range(7)]
    assert summary.collections(made).endswith("(c0 1,000 - c1 1,000 - c2 1,000 - c3 1,000 - c4 1,000 - and 2 more)")
    assert summary.label(Collection("id", "c", "acme", "prod", 1)) == "acme/prod/c"
    assert summary.collections([]) == "0 records in 0 collections"
