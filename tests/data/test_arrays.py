from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.arrays import first_equal, positions_in, ranges, starts_of


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=8))
def test_lists_in_a_flat_array(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    assert starts_of(lengths).tolist() == [sum(n for _, n in pairs[:i]) for i in range(len(pairs))]
    assert positions_in(lengths).tolist() == [i for _, n in pairs for i in range(n)]
    assert ranges(starts, lengths).tolist() == [i for start, n in pairs for i in range(start, start + n)]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_first_equal(values: list[int]) -> None:
    assert first_equal(np.array(values, np.int64)).tolist() == [values.index(value) for value in values]
