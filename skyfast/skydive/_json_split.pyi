from typing import Self, final

@final
class ArraySplitter:
    """Splits the text of one JSON list into its elements. ``null`` counts as an empty list.

    Elements longer than ``max_element_bytes`` are skipped and counted in ``skipped``. The syntax
    inside the elements is not checked. Two threads must not use the same splitter at the same time.

    Raises:
        ValueError: ``max_element_bytes`` is not positive.

    """

    def __new__(cls, *, max_element_bytes: int) -> Self: ...
    @property
    def skipped(self) -> int: ...
    def feed(self, piece: bytes | bytearray | memoryview, /) -> list[bytes]:
        """Return the elements that end in ``piece`` (the next part of the text), in order.

        Releases the GIL while it scans the text.

        Raises:
            ValueError: The text is not a JSON list. The splitter must not be used afterwards.

        """

    def close(self) -> None:
        """Check that the list has ended.

        Raises:
            ValueError: The text ended before the list did.

        """
