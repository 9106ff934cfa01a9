"""Many lists in one flat array: where each begins, and how to reach the entries of some of them without a loop.

Throughout: n lists, ``lengths`` (int [n]) their lengths, total = ``lengths.sum()``.
"""

from __future__ import annotations

import numpy as np


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each list begins in the flat array: [n] → int64 [n], e.g. [2, 0, 3] → [0, 2, 2]."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def positions_in(lengths: np.ndarray) -> np.ndarray:
    """Of each entry of the flat array its place in its own list: [n] → int64 [total], e.g. [2, 0, 3] → [0, 1, 0, 1, 2]."""
    return np.arange(int(lengths.sum())) - np.repeat(starts_of(lengths), lengths)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``start … start + length − 1`` for each list, one after the other: [n], [n] → int64 [total].

    E.g. [7, 0], [2, 3] → [7, 8, 0, 1, 2]. As an index it reads or writes lists that lie anywhere in a flat array.
    """
    return np.repeat(starts, lengths) + positions_in(lengths)


def first_equal(values: np.ndarray) -> np.ndarray:
    """For each entry the number of the first entry that is equal to it: [n] → int32 [n], e.g. [5, 8, 5] → [0, 1, 0]."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first.astype(np.int32)[inverse])
