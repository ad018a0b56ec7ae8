"""Random numbers that depend only on (seed, index, stream), on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Raw 64-bit integers of the counter-based generator Philox, turned into numbers here.

    NumPy keeps the raw stream fixed between versions but not the methods of `Generator`, so those are not used.
    Streams of one (seed, index) are independent: what one part of a scene throws never moves another part.
    """

    def __init__(self, seed: int, index: int, stream: int):
        key = np.array([seed, index], dtype=np.uint64)
        self._bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64))

    def numbers(self, *shape: int) -> np.ndarray:
        """float64 of that shape, in [0, 1)."""
        return ((self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * (self._bits.random_raw() >> 11) * 2.0**-53

    def middling(self, low: float, high: float) -> float:
        """Like `number`, but the middle of the range is likelier than its ends (triangular)."""
        return (self.number(low, high) + self.number(low, high)) / 2

    def whole(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self._bits.random_raw() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        return self.number() < probability

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.whole(0, len(choices) - 1)]

    def shuffled(self, count: int) -> list[int]:
        """0 .. count - 1 in random order."""
        return [int(i) for i in np.argsort(self.numbers(count), kind="stable")]
