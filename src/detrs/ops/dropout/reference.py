"""Which elements dropout keeps: the definition, in plain PyTorch, that tests compare the kernels with.

An element is kept if a hash of its row, its column and a seed is at least ``rate * 2**32``. So a mask costs one random
number, and no memory: the backward pass computes it again. The hash of a row is that of SplitMix64 (Steele et al. 2014,
"Fast splittable pseudorandom number generators"); its two words are keys of a hash of the column in the manner of
MurmurHash3's finalizer.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

WORDS = 2**32
"""Number of values of a hash: rates are rounded to multiples of its inverse."""
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Increment and multipliers of SplitMix64."""
MULTIPLIERS = 0x7FEB352D, 0x846CA68B
"""Multipliers of the hash of a column."""


def threshold(rate: float) -> int:
    """The smallest hash of an element that is kept."""
    return min(round(rate * WORDS), WORDS - 1)


def scale(rate: float) -> float:
    """Factor of the elements that are kept: the inverse of the probability to be kept, so that means are exact."""
    return WORDS / (WORDS - threshold(rate))


def kept(seed: int, rows: int, columns: int, rate: float) -> Bool[Tensor, "rows columns"]:
    """True for elements that are kept.

    Args:
        seed: any 64-bit integer.
        rows: all axes but the last.
        columns: the last axis.
        rate: probability to be dropped, in [0, 1).
    """
    key = torch.arange(1, rows + 1) * _signed(GOLDEN) + _signed(seed % 2**64)  # 64-bit arithmetic wraps
    key = (key ^ _shifted(key, 30)) * _signed(FIRST)
    key = (key ^ _shifted(key, 27)) * _signed(SECOND)
    key = (key ^ _shifted(key, 31))[:, None]
    low, high = key & WORDS - 1, _shifted(key, 32)
    x = torch.arange(columns) + low & WORDS - 1
    x = (x ^ x >> 16) * MULTIPLIERS[0] & WORDS - 1
    x = (x ^ x >> 15 ^ high) * MULTIPLIERS[1] & WORDS - 1
    return x ^ x >> 16 >= threshold(rate)


def seed_of_row(seed: int, row: int) -> int:
    """The seed whose first row is ``row`` of ``seed``."""
    return _signed((seed + row * GOLDEN) % 2**64)


def _signed(word: int) -> int:
    """A 64-bit word as the signed integer of the same bits."""
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros; that of signed integers fills with the sign."""
    return words >> bits & 2 ** (64 - bits) - 1
