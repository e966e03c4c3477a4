"""The classes of formats without a list of classes: the names of all objects, sorted."""

from typing import Any

from detrs.data.findings import Findings
from detrs.data.objects import Columns


class ClassNames:
    """Numbers class names in the order of their first occurrence until all of them are known.

    Args:
        notes: Receives names with spaces around them, which are removed.
        names: Names that are known before, in the order of their ids. If there are any, the order is kept.
    """

    def __init__(self, notes: Findings, names: tuple[str, ...] = ()) -> None:
        self._notes = notes
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._is_ordered = bool(names)

    def __contains__(self, name: str) -> bool:
        return name.strip() in self._numbers

    def number(self, name: str, place: str) -> int:
        """The number of a name, which is added if it is new. ``place`` is where it occurs, for messages."""
        if (stripped := name.strip()) != name:
            self._notes.add("class name with spaces around it, which are removed", f"{place}: {name!r:.40}")
        return self._numbers.setdefault(stripped, len(self._numbers) + 1)

    def add(self, name: str) -> None:
        """Adds a name that occurs in another split."""
        self._numbers.setdefault(name.strip(), len(self._numbers) + 1)

    def categories(self, columns: Columns) -> list[dict[str, Any]]:
        """The classes with the ids 1 to K in the order of the names; the numbers in ``columns`` become these ids."""
        names = list(self._numbers) if self._is_ordered else sorted(self._numbers)
        ids = {self._numbers[name]: id_ for id_, name in enumerate(names, 1)}
        columns.category_id.replace(ids.__getitem__)
        return [{"id": id_, "name": name} for id_, name in enumerate(names, 1)]

    def digest(self) -> bytes:
        """All names, for the digest of a split."""
        return "\0".join(sorted(self._numbers)).encode(errors="surrogatepass")
