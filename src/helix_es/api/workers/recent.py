"""A mapping that remembers what was used last, and makes what it has forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """At most `most` values; the one that was not asked for longest goes first."""

    def __init__(self, most: int, make: Callable[[], Value]) -> None:
        self._most = most
        self._make = make
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __getitem__(self, key: Key) -> Value:
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._make()
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return value

    def forget(self, key: Key) -> None:
        """Drop what is known of `key`."""
        self._values.pop(key, None)
