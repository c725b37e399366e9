"""Own names of addresses and networks."""

import ipaddress
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.flows import own_names
from skyfast.flows.own_names import (
    MAX_KEYS,
    MAX_NAME_CHARS,
    MAX_PROBLEMS,
    InvalidEntryError,
    InvalidLinesError,
    OwnNameEntry,
    OwnNames,
    changed_addresses,
    make_entry,
    read_csv,
    read_prefix,
)

# Prefixes.


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("2001:DB8::1", "2001:0db8:0:0::1/128"),
        ("2001:db8::/32", "2001:db8:0::/32"),
    ],
)
def test_different_spellings_of_a_prefix_are_equal(text: str, other: str) -> None:
    assert read_prefix(text) == read_prefix(other)


def test_ipv4_and_ipv6_prefixes_differ() -> None:
    texts = ["0.0.0.0", "0.0.0.0/0", "::", "::/0", "::/32", "0.0.0.0/1", "::0.0.0.1", "0.0.0.1"]
    assert len({read_prefix(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "/8",
            "10",
            "10.0.0",
            "10.0.0.256",
            "name",
            "10.0.0.1 ",
            "fe80::1%eth0",
            "1.2.3.4:80",
        ),
        *("10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/8/8", "10.0.0.0/255.0.0.0"),
        *("10.0.0.0/08", "10.0.0.0/٨", "::/129", "::ffff:10.0.0.0/95", "::ffff:10.0.0.0/8"),
        "9" * 10_000,
    ],
)
def test_invalid_prefix_is_rejected(text: str) -> None:
    with pytest.raises(InvalidEntryError, match="is not an address or network") as caught:
        read_prefix(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.0.0.1/0", "0.0.0.0/0"),
        ("::ffff:10.1.2.3/112", "10.1.0.0/16"),
        ("2001:db8::1/127", "2001:db8::/127"),
    ],
)
def test_prefix_must_start_with_the_first_address_of_its_network(text: str, network: str) -> None:
    with pytest.raises(InvalidEntryError) as caught:
        read_prefix(text)
    problem = "does not begin with the first address of its network"
    assert str(caught.value) == f"'{text}' {problem}; write {network}"


# The file.


def test_comments_quotes_and_spaces_are_parsed() -> None:
    text = (
        "# comment, with a comma\r\n"
        "10.0.0.0/8,company\r\n"
        "\r\n"
        "   # another comment\n"
        '  10.1.0.0/16 , "berlin, guests", site=ber \n'
        '"10.2.0.0/16" ,"say ""hi""","note=a,b",x=y=z\n'
        "2001:db8::1,Zürich,_k2=ö\n"
        "10.0.0.1,,id=1"
    )
    assert read_csv(text) == {
        read_prefix("10.0.0.0/8"): OwnNameEntry("company"),
        read_prefix("10.1.0.0/16"): OwnNameEntry("berlin, guests", (("site", "ber"),)),
        read_prefix("10.2.0.0/16"): OwnNameEntry('say "hi"', (("note", "a,b"), ("x", "y=z"))),
        read_prefix("2001:db8::1"): OwnNameEntry("Zürich", (("_k2", "ö"),)),
        read_prefix("10.0.0.1"): OwnNameEntry("", (("id", "1"),)),
    }
    assert read_csv("") == read_csv("\n# nothing\n") == {}


INVALID_LINES = {
    "10.0.0.1": "'10.0.0.1' is not in the form prefix,name[,key=value…]",
    "10.0.0.x,name": "'10.0.0.x' is not an address or network",
    "10.0.0.1/8,name": (
        "'10.0.0.1/8' does not begin with the first address of its network; write 10.0.0.0/8"
    ),
    "10.0.0.1,": "an entry needs a name or a value",
    ",name": "'' is not an address or network",
    "10.0.0.1,name,site": "'site' is not in the form key=value",
    "10.0.0.1,name,": "'' is not in the form key=value",
    "10.0.0.1,name,=x": "'' is not a key: use letters, digits and _, not starting with a digit",
    "10.0.0.1,name,1a=x": "'1a' is not a key: use letters, digits and _, not starting with a digit",
    "10.0.0.1,name,a-b=x": "'a-b' is not a key: use letters, digits and _, not starting with a"
    " digit",
    "10.0.0.1,name,ä=x": "'ä' is not a key: use letters, digits and _, not starting with a digit",
    "10.0.0.1,name,a=": f"'' is not a string of 1 to {MAX_NAME_CHARS} printable characters",
    "10.0.0.1,name,a=1,a=2": "an entry contains a key twice",
    "10.0.0.1,a\tb": f"'a\\tb' is not a string of 1 to {MAX_NAME_CHARS} printable characters",
    "10.0.0.1,name,a=\x00": (
        f"'\\x00' is not a string of 1 to {MAX_NAME_CHARS} printable characters"
    ),
    "10.0.0.1,a\x0bb": f"'a\\x0bb' is not a string of 1 to {MAX_NAME_CHARS} printable characters",
    '"10.0.0.1,name': "wrong quotes: '\"10.0.0.1'",
    '",name': "wrong quotes: '\"'",
    '10.0.0.1,"name': "wrong quotes: unexpected end of data",
    '10.0.0.1,"na"me': "wrong quotes: ',' expected after '\"'",
    f"10.0.0.1,{'n' * (MAX_NAME_CHARS + 1)}": f"'{'n' * 60}…' is not a string of 1 to"
    f" {MAX_NAME_CHARS} printable characters",
}


@pytest.mark.parametrize(("line", "problem"), INVALID_LINES.items())
def test_invalid_line_is_rejected_with_its_number(line: str, problem: str) -> None:
    with pytest.raises(InvalidLinesError) as caught:
        read_csv(f"# names\n10.9.9.9,good\n\n{line}\n10.9.9.8,good\n")
    assert caught.value.problems == [(4, problem)]


def test_invalid_lines_are_listed_up_to_a_maximum_number() -> None:
    with pytest.raises(InvalidLinesError) as caught:
        read_csv("10.0.0.0/8,a\nx,a\n10.0.0.1,b\ny,b\n10.0.0.0/8,a\n10.0.0.1/32,c\n")
    assert caught.value.problems == [
        (2, "'x' is not an address or network"),
        (4, "'y' is not an address or network"),
        (5, "'10.0.0.0/8' is already on another line"),
        (6, "'10.0.0.1/32' is already on another line"),
    ]
    with pytest.raises(InvalidLinesError) as caught:
        read_csv("x,a\n" * 1000)
    assert [number for number, _ in caught.value.problems] == [*range(1, MAX_PROBLEMS + 1)]


def test_number_of_keys_is_limited() -> None:
    lines = [f"10.0.0.{n},,k{n}=v" for n in range(MAX_KEYS)]
    assert len(read_csv("\n".join([*lines, "10.0.1.1,,k0=w"]))) == MAX_KEYS + 1
    with pytest.raises(InvalidLinesError) as caught:
        read_csv("\n".join([*lines, "10.0.1.1,,k=v", "10.0.1.2,,k1=w"]))
    assert caught.value.problems == [(MAX_KEYS + 1, f"'k' is beyond the limit of {MAX_KEYS} keys")]


def test_longest_names_are_accepted() -> None:
    longest = "ü" * MAX_NAME_CHARS
    assert list(read_csv(f"::,{longest},{'k' * MAX_NAME_CHARS}={longest}").values()) == [
        make_entry(longest, [("k" * MAX_NAME_CHARS, longest)])
    ]


@given(st.text(alphabet='10.:/,"#= \na\r\x00é', max_size=60))
def test_any_text_is_accepted_or_rejected_with_an_error(text: str) -> None:
    try:
        entries = read_csv(text)
    except InvalidLinesError as error:
        assert all(0 < number <= text.count("\n") + 1 for number, _ in error.problems)
    else:
        for entry in entries.values():
            assert make_entry(entry.name, entry.values) == entry


def test_equal_strings_are_shared() -> None:
    one, two = read_csv("10.0.0.1,name,a=value\n10.0.0.2,name,a=value\n").values()
    assert one.name is two.name
    assert one.values[0] is two.values[0]


# Lookups.

KEYS = ("a", "b")


def looked_up(
    entries: Mapping[str, OwnNameEntry], address: str, keys: Sequence[str]
) -> tuple[str, ...]:
    """Return the names of an address by a linear search of all networks."""
    wanted = ipaddress.ip_address(address)
    if wanted.version == 6 and wanted.ipv4_mapped:
        wanted = wanted.ipv4_mapped
    name, network, values = "", "", dict.fromkeys(keys, "")
    networks = [(ipaddress.ip_network(text), entry) for text, entry in entries.items()]
    for prefix, entry in sorted(networks, key=lambda pair: pair[0].prefixlen):
        if wanted in prefix:
            if prefix.prefixlen == prefix.max_prefixlen:
                name = entry.name
            else:
                network = entry.name or network
            values |= {key: value for key, value in entry.values if key in values}
    return (name, network, *values.values())


ENTRIES = st.builds(
    lambda name, values: OwnNameEntry(name, tuple(values.items())),
    st.sampled_from(["", "n1", "n2", "n3"]),
    st.dictionaries(st.sampled_from(["a", "b", "unused"]), st.sampled_from(["v1", "v2"])),
)


@st.composite
def prefixes(draw: st.DrawFn) -> str:
    """Generate networks near a few addresses, including the lowest and the highest one."""
    most = draw(st.sampled_from([32, 128]))
    near = draw(st.sampled_from([0, (1 << most) - 1, 1 << most - 1, 1 << 64, 10 << 24, 5 << 61]))
    number = max(0, min((1 << most) - 1, near + draw(st.integers(-5, 5))))
    bits = most - draw(st.one_of(st.integers(0, 5), st.integers(0, most)))
    first = number >> most - bits << most - bits
    address = ipaddress.IPv4Address(first) if most == 32 else ipaddress.IPv6Address(first)
    return f"{address}/{bits}"


@given(st.dictionaries(prefixes(), ENTRIES, max_size=12), st.lists(st.integers(0, 1 << 128)))
def test_lookups_match_a_linear_search(entries: dict[str, OwnNameEntry], random: list[int]) -> None:
    # IPv4-mapped addresses are looked up as IPv4, so IPv6 networks do not match them.
    names = OwnNames({read_prefix(text): entry for text, entry in entries.items()}, KEYS)
    numbers = [*random]
    for text in entries:
        network = ipaddress.ip_network(text)
        first, last = int(network.network_address), int(network.broadcast_address)
        numbers += [first - 1, first, (first + last) // 2, last, last + 1]
    texts = [str(ipaddress.IPv4Address(number % (1 << 32))) for number in numbers]
    texts += [str(ipaddress.IPv6Address(number % (1 << 128))) for number in numbers]
    for text in texts:
        assert names[text] == looked_up(entries, text, KEYS), text
    assert names.count == len(entries)


def test_text_that_is_not_an_address_has_no_own_name() -> None:
    entries = {read_prefix(text): OwnNameEntry("all") for text in ("0.0.0.0/0", "::/0")}
    names = OwnNames(entries, ("a",))
    for text in ("", "x", "10.0.0", "10.0.0.1/32", "fe80::1%eth0", "1" * 1000, "\udc80", "\x00"):
        assert names[text] == ("", "", "")
    assert names["10.0.0.1"] == names["::ffff:10.0.0.1"] == names["::1"] == ("", "all", "")


def test_adjacent_networks_with_equal_names_are_merged() -> None:
    entries = {read_prefix(f"10.0.{number}.0/24"): OwnNameEntry("n") for number in range(256)}
    names = OwnNames(entries)
    assert len(names._starts4) == 3
    assert names["10.0.0.0"] == names["10.0.255.255"] == ("", "n")
    assert names["9.255.255.255"] == names["10.1.0.0"] == ("", "")


def test_networks_with_equal_names_share_one_tuple() -> None:
    entries = {read_prefix(f"10.0.{2 * number}.0/24"): OwnNameEntry("n") for number in range(100)}
    names = OwnNames(entries)
    assert names["10.0.0.1"] is names["10.0.2.1"]


def test_addresses_with_changed_names_are_found() -> None:
    old = OwnNames(read_csv("10.0.0.0/8,a\n10.1.0.0/16,b,k=1\n2001:db8::1,x\n"), ("k",))
    new = OwnNames(read_csv("10.0.0.0/8,a\n10.1.0.0/16,b,k=2\n2001:db8::2,x\n"), ("k",))
    texts = ["10.0.0.1", "10.1.0.1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "TCP", "", "443"]
    assert changed_addresses(texts, old, new) == {"10.1.0.1", "2001:db8::1", "2001:db8::2"}
    assert changed_addresses(texts, old, old) == set()
    assert own_names.NO_NAMES["10.0.0.1"] == ("", "")


def test_sorting_in_several_steps_does_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "".join(f"10.{number * 37 % 256}.0.0/16,n{number}\n" for number in range(256))
    expected = OwnNames(read_csv(text))
    for count in (1, 7, 255, 256):
        monkeypatch.setattr(own_names, "_SORTED_AT_ONCE", count)
        names = OwnNames(read_csv(text))
        for number in range(256):
            assert names[f"10.{number}.0.1"] == expected[f"10.{number}.0.1"]


def test_release_frees_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_names, "_FREED_AT_ONCE", 2)
    names = OwnNames(
        {read_prefix(f"10.0.{number}.0/24"): OwnNameEntry(f"{number}") for number in range(9)}
    )
    names.release()
    assert names._names == []
