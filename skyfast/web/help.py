"""The explanations of the figures on the pages.

The texts are package data. docs/status.md contains the same texts.
"""

import functools
from dataclasses import dataclass

import msgspec

from skyfast.web import html


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """The explanation of a figure."""

    title: str
    page: str
    """Where to read more: a path in ``docs``, with an anchor."""
    text: str


@functools.cache
def topics() -> dict[str, Topic]:
    """Return the explanations by anchor, in the order of the page ``/help``."""
    return msgspec.yaml.decode(html.read("help.yml"), type=dict[str, Topic])
