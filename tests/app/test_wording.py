"""Numbers with their nouns."""

import pytest

from skyfast.wording import counted, noun


@pytest.mark.parametrize(
    ("number", "nouns", "expected"),
    [
        (0, ("page",), "0 pages"),
        (1, ("page",), "1 page"),
        (2, ("page",), "2 pages"),
        (1, ("entry", "entries"), "1 entry"),
        (1000, ("entry", "entries"), "1000 entries"),
        (2, ("series", "series"), "2 series"),
    ],
)
def test_noun_is_plural_unless_the_number_is_1(
    number: int, nouns: tuple[str, ...], expected: str
) -> None:
    assert counted(number, *nouns) == expected
    assert noun(number, *nouns) == expected.split()[1]
