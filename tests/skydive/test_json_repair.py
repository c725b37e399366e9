"""JSON text that the decoder refuses: what is taken out, and that all else stays."""

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


def test_pruning_leaves_what_is_flat_as_it_was() -> None:
    text = rb'{"a":"]}\"[","b":[1,{"c":[]}],"d":"\\"}'
    assert prune_depth(text) == text
    assert mark_lone_surrogates(text) == text


def test_pruning_takes_out_what_is_deep_and_no_more() -> None:
    text = b'{"deep":%b,"after":["[",{}],"again":%b}' % (DEEP, DEEP)
    document = json.loads(prune_depth(text))
    assert document["after"] == ["[", {}]
    assert list(document) == ["deep", "after", "again"]


def test_pruning_keeps_as_many_levels_as_it_says() -> None:
    at_most = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert prune_depth(at_most) == at_most
    assert prune_depth(b"[%b]" % at_most) == at_most


def test_pruning_does_not_look_at_text_without_end() -> None:
    assert prune_depth(b"[]" * (MAX_REPAIRED_TOKENS // 2))
    with pytest.raises(msgspec.DecodeError):
        prune_depth(b"[]" * (MAX_REPAIRED_TOKENS // 2) + b"[")


def test_whole_surrogate_pairs_stay() -> None:
    text = rb'"\ud83d\ude00 \\ud800 \u0041"'
    assert mark_lone_surrogates(text) == text
    assert mark_lone_surrogates(rb'"\ud83d\ud83d\ude00"') == b'"\xff' + rb'\ud83d\ude00"'


def test_surrogates_are_looked_for_in_so_many_escapes() -> None:
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
def test_what_stands_for_no_character_is_shown_as_one(text: bytes, readable: str) -> None:
    assert replace_unreadable(text).decode() == readable
