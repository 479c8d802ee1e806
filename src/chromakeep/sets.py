"""Sets: arrays of numbers as sets. numpy's own routines import ``numpy.ma``, a tenth of what a small command takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def distinct(numbers: NDArray[Any]) -> NDArray[Any]:
    """Each of the numbers once, ascending."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def among(numbers: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Of each of the numbers, whether it is one of the others."""
    if not len(others):
        return np.zeros(len(numbers), np.bool_)
    ordered = np.sort(others)
    found: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)] == numbers
    return found


def without(numbers: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Each of the numbers that is none of the others once, ascending."""
    kept = distinct(numbers)
    return kept[~among(kept, others)]
