"""The JSON splitter finds the same elements as the `json` module, which parses the whole text."""

import json
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skyfast.skydive._json_split import ArraySplitter
from tests.support import core_builds


def split(text, sizes=(1 << 20,), *, max_element_bytes=1 << 20):
    """Feed ``text`` in pieces whose sizes cycle through ``sizes``, and return its elements."""
    splitter = ArraySplitter(max_element_bytes=max_element_bytes)
    elements, start, number = [], 0, 0
    while start < len(text):
        size = sizes[number % len(sizes)]
        elements += splitter.feed(text[start : start + size])
        start, number = start + size, number + 1
    splitter.close()
    return elements


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[]", []),
        (b" [ ] \r\n\t", []),
        (b"null", []),
        (b" \n null ", []),
        (b"[1]", [b"1"]),
        (b"[ 1 , 2 ]", [b"1 ", b"2 "]),
        (b'["a,]", "\\"]", "\\\\"]', [b'"a,]"', b'"\\"]"', b'"\\\\"']),
        (b'[{"a": [1, {"]": "}"}]}, [[], [2]]]', [b'{"a": [1, {"]": "}"}]}', b"[[], [2]]"]),
        (b'["\\u0022", "\xc3\xa9\xff"]', [b'"\\u0022"', b'"\xc3\xa9\xff"']),
    ],
)
def test_elements_are_split_without_changes(text, expected, size):
    assert split(text, (size,)) == expected


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"[",
        b"[1",
        b"[1,",
        b"[1,]",
        b"[,1]",
        b"[1,,2]",
        b"[}",
        b"[1}",
        b"[1]]",
        b"[1] 2",
        b"[] []",
        b"{}",
        b"7",
        b'"[]"',
        b"nul",
        b"null1",
        b"n ull",
        b"null null",
        b"true",
        b'["]',
        b'["\\"]',
        b"[[1]",
        b"\xff",
        b"\xef\xbb\xbf[]",
        b"<html>",
    ],
)
def test_text_that_is_not_a_list_is_rejected(text, size):
    with pytest.raises(ValueError, match="not a JSON list"):
        split(text, (size,))


def test_error_shows_the_offset():
    splitter = ArraySplitter(max_element_bytes=100)
    assert splitter.feed(b"[1,2") == [b"1"]
    with pytest.raises(ValueError, match="unexpected text at byte 7"):
        splitter.feed(b" ] x")
    with pytest.raises(ValueError, match="ends after 7 bytes"):
        split(b'[1, "a]')


def test_errors_inside_an_element_are_not_detected():
    assert split(b'[{"a" 1 ], {)}, 01 02]') == [b'{"a" 1 ]', b"{)}", b"01 02"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_too_long_elements_are_skipped_and_counted(size):
    text = json.dumps(["a" * 8, "b" * 9, ["c" * 100], "d" * 9000, 1]).encode()
    splitter = ArraySplitter(max_element_bytes=11)
    elements = []
    for start in range(0, len(text), size):
        elements += splitter.feed(text[start : start + size])
    splitter.close()
    assert elements == [b'"aaaaaaaa"', b'"bbbbbbbbb"', b"1"]
    assert splitter.skipped == 2


def test_ten_thousand_elements_are_found():
    numbers = list(range(10_000))
    assert [int(part) for part in split(json.dumps(numbers).encode())] == numbers


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_bytearrays_and_memoryviews_can_be_fed(kind):
    splitter = ArraySplitter(max_element_bytes=100)
    assert splitter.feed(kind(b"[1, 22")) == [b"1"]
    assert splitter.feed(kind(b"")) == []
    assert splitter.feed(kind(b"3]")) == [b"223"]
    splitter.close()


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match="positive"):
        ArraySplitter(max_element_bytes=0)
    with pytest.raises(TypeError):
        ArraySplitter(max_element_bytes=1).feed(None)
    with pytest.raises(TypeError):
        ArraySplitter(max_element_bytes=1).feed("[]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.sampled_from('[]{},"\\nuléx ')),
    lambda values: st.lists(values) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=20,
)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(JSON), st.booleans(), st.sampled_from([None, 2]), SIZES)
def test_elements_of_any_list_match_those_of_the_json_module(values, ascii_only, indent, sizes):
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    assert [json.loads(element) for element in split(text, sizes)] == values


def outcome(read):
    """Return the result of ``read``, or None if the text is not a list."""
    try:
        values = read()
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, list) else [] if values is None else None


@settings(deadline=None, max_examples=2000 if not core_builds.IS_SLOW else 500)
@given(st.text(alphabet=st.sampled_from('[]{},:"\\ 1nul'), max_size=20).map(str.encode), SIZES)
@example(b"[1,]", [1])
@example(b'[{"a":1},[],"],"]', [2])
def test_splitter_and_json_module_agree_on_any_text(text, sizes):
    assert outcome(lambda: [json.loads(element) for element in split(text, sizes)]) == outcome(
        lambda: json.loads(text)
    )


@settings(deadline=None)
@given(st.binary(max_size=200), SIZES)
def test_result_does_not_depend_on_the_sizes_of_the_pieces(data, sizes):
    text = b"[" + data + b"]"
    assert outcome(lambda: split(text, sizes)) == outcome(lambda: split(text))


def test_scanning_releases_the_gil():
    text = b"[" + b" " * (200 if not core_builds.IS_SLOW else 20) * 1_000_000 + b"]"
    splitter = ArraySplitter(max_element_bytes=1)
    done = threading.Event()

    def feed():
        splitter.feed(text)
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    turns = 0
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 2
