"""Durations as people write them."""

from __future__ import annotations

import pytest

from chromakeep.cli.durations import seconds
from chromakeep.errors import UsageError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[("60s", 60), ("5m", 300), ("1h30m", 5400), ("7d", 604800), ("2w", 1209600), ("500ms", 0.5), ("1.5h", 5400)],
        *[("60", 60), (60, 60), (0.25, 0.25), ("0", 0), (" 10S ", 10)],
    ],
)
def test_a_duration_is_numbers_with_units_or_seconds(written: str | float, meant: float) -> None:
    """A bare number is seconds; units may be joined; case and blanks at the ends do not matter."""
    assert seconds(written) == pytest.approx(meant)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "s",
        "-5s",
        "+5s",
        "5 m",
        "5x",
        "1e9s",
        "nan",
        "inf",
        "٣s",
        "5s,",
        "1h-2m",
        "200y",
        True,
        "9" * 400,
        "4000000000s",
    ],
)
def test_anything_else_is_refused(written: str | bool) -> None:
    """Signs, blanks inside, other digits, unknown units, infinities and more than a century are not durations."""
    with pytest.raises(UsageError):
        seconds(written)
