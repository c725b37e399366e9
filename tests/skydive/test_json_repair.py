"""Repair of JSON text that the decoder rejects: only the rejected parts change."""

import json

import msgspec
import pytest

from skyfast.skydive.json_repair import (
    MAX_DEPTH,
    MAX_REPAIRED_TOKENS,
    mark_lone_surrogates,
    prune_depth,
    replace_unreadable,
)
from tests.support.messages import DEEP


def test_pruning_keeps_shallow_text() -> None:
    text = rb'{"a":"]}\"[","b":[1,{"c":[]}],"d":"\\"}'
    assert prune_depth(text) == text
    assert mark_lone_surrogates(text) == text


def test_pruning_removes_only_deep_values() -> None:
    text = b'{"deep":%b,"after":["[",{}],"again":%b}' % (DEEP, DEEP)
    document = json.loads(prune_depth(text))
    assert document["after"] == ["[", {}]
    assert list(document) == ["deep", "after", "again"]


def test_pruning_keeps_max_depth_levels() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert prune_depth(deepest) == deepest
    assert prune_depth(b"[%b]" % deepest) == deepest


def test_pruning_limits_the_number_of_tokens() -> None:
    assert prune_depth(b"[]" * (MAX_REPAIRED_TOKENS // 2))
    with pytest.raises(msgspec.DecodeError):
        prune_depth(b"[]" * (MAX_REPAIRED_TOKENS // 2) + b"[")


def test_surrogate_pairs_are_kept() -> None:
    text = rb'"\ud83d\ude00 \\ud800 \u0041"'
    assert mark_lone_surrogates(text) == text
    assert mark_lone_surrogates(rb'"\ud83d\ud83d\ude00"') == b'"\xff' + rb'\ud83d\ude00"'


def test_surrogate_search_stops_after_max_escapes() -> None:
    text = rb"\n\ud800\udc00\ud800\n\ud800"
    assert mark_lone_surrogates(text, max_escapes=3) == rb"\n\ud800\udc00" + b"\xff" + rb"\n\ud800"
    assert mark_lone_surrogates(text) == rb"\n\ud800\udc00" + b"\xff" + rb"\n" + b"\xff"


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ('plain \\" \\\\ é'.encode(), 'plain \\" \\\\ é'),
        (rb"\ud83d\ude00", r"\ud83d\ude00"),
        (rb"\ud800\udfff\ud800", "\\ud800\\udfff\ufffd"),
        (rb"\DC00\udC00", "\\DC00\ufffd"),
        (b"a\xffb", "a\ufffdb"),
        (b"\xe2\x82" + rb"\udc00", "\ufffd\ufffd"),
    ],
)
def test_unreadable_bytes_become_replacement_characters(text: bytes, readable: str) -> None:
    assert replace_unreadable(text).decode() == readable
