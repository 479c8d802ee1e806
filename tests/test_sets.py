"""Sets: the same as numpy's own, for any numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chromakeep.sets import among, distinct, without

NUMBERS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5)).map(lambda some: np.array(some, np.uint64))


@given(NUMBERS, NUMBERS)
def test_as_numpy_has_it(some: np.ndarray, others: np.ndarray) -> None:
    assert np.array_equal(distinct(some), np.unique(some))
    assert np.array_equal(among(some, others), np.isin(some, others))
    assert np.array_equal(without(some, others), np.setdiff1d(some, others))
