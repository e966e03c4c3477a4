"""A column of ids, of which each is stored once."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray


class IdColumn:
    """Integers of any size, as 4 bytes each and a list of the different ones."""

    def __init__(self) -> None:
        self._distinct: list[int] = []
        self._numbers: dict[int, int] = {}
        self._column = array("i")
        """For each row, an index in ``_distinct``."""

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: SupportsIndex) -> int:
        return self._distinct[self._column[row]]

    def append(self, id_: int) -> None:
        self._column.append(self._number(id_))

    def extend(self, ids: Sequence[int]) -> None:
        """Appends integers; none of them is a ``bool`` or a float."""
        numbers = self._numbers
        for id_ in ids:
            if id_ not in numbers:
                self._number(id_)
        self._column.extend(map(numbers.__getitem__, ids))

    def replace(self, ids: Callable[[int], int]) -> None:
        """Replaces every id."""
        self._distinct = [ids(id_) for id_ in self._distinct]
        self._numbers = {id_: number for number, id_ in enumerate(self._distinct)}

    def mapped(self, values: Callable[[int], int]) -> NDArray[Any]:
        """(N,) int32: a value for each id."""
        table = np.fromiter(map(values, self._distinct), np.int32, len(self._distinct))
        return table[np.frombuffer(self._column, dtype=np.int32)] if len(self) else table

    def _number(self, id_: int) -> int:
        number = self._numbers.setdefault(id_, len(self._distinct))
        if number == len(self._distinct):
            self._distinct.append(id_)
        return number
