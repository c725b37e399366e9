"""Numbers with their nouns, for messages and pages."""


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return text such as ``1 message`` or ``2 messages``; the default plural ends with ``s``."""
    return f"{number} {noun(number, singular, plural)}"


def noun(number: int, singular: str, plural: str = "") -> str:
    """Return the noun that follows ``number``: ``singular`` for 1, else ``plural``."""
    if number == 1:
        return singular
    return plural or f"{singular}s"
