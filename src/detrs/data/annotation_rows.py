"""The annotations of a COCO dictionary without an object for each."""

from collections.abc import Sequence
from typing import Any, overload

from detrs.data.objects import Objects


class AnnotationRows(Sequence[dict[str, Any]]):
    """Annotations whose dictionaries are made when they are needed, with ids from 1."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        """Their values as arrays."""

    def __len__(self) -> int:
        return len(self.objects)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        entry = self.objects[index]
        return {
            "id": index + 1,
            "image_id": entry.image_id,
            "category_id": entry.category_id,
            "bbox": list(entry.bbox),
            "area": entry.area,
            "iscrowd": int(entry.crowd),
        }
