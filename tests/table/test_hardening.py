"""What the compiler was asked for to make faults of the core harder to exploit, in the file itself.

The flags are in ``setup.py``; this looks for what they bring about, by the ELF specification and
the Linux extensions to it (``elf.h``).
"""

import platform
import struct
import sysconfig
from pathlib import Path

import pytest

import skyfast

END = sysconfig.get_config_var("EXT_SUFFIX")
PACKAGE = Path(skyfast.__file__).parent
CORE = PACKAGE / f"_table{END}"
SPLITTER = PACKAGE / "skydive" / f"_json_split{END}"

PT_LOAD, PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
PF_X, PF_W = 1, 2
DT_STRTAB, DT_STRSZ, DT_TEXTREL, DT_FLAGS = 5, 10, 22, 30
DF_BIND_NOW = 8


class Elf:
    """A shared object of 64 bits, as far as the tests look at it."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        assert self.data[:5] == b"\x7fELF\x02", "64 bits"
        self._order = "<" if self.data[5] == 1 else ">"
        (at,) = self._read("Q", 32)
        size, count = self._read("HH", 54)
        self.segments = [self._read("IIQQQQ", at + n * size) for n in range(count)]
        """Type, flags, offset, virtual address, physical address and bytes in the file, of each."""

    def _read(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, self.data, at)

    def flags(self, kind: int) -> list[int]:
        """Return the flags of the segments of a kind."""
        return [flags for each, flags, *_ in self.segments if each == kind]

    @property
    def dynamic(self) -> dict[int, int]:
        """The dynamic section, but for the tags that it has several times."""
        (segment,) = [each for each in self.segments if each[0] == PT_DYNAMIC]
        _, _, offset, _, _, size = segment
        return dict(self._read("qQ", at) for at in range(offset, offset + size, 16))

    @property
    def names(self) -> set[str]:
        """The names that are looked up in other files, or that others look up."""
        address, size = self.dynamic[DT_STRTAB], self.dynamic[DT_STRSZ]
        for kind, _, offset, start, _, length in self.segments:
            if kind == PT_LOAD and start <= address < start + length:
                at = offset + address - start
                return set(self.data[at : at + size].decode().split("\0"))
        raise AssertionError("the names are in no segment")


@pytest.fixture(scope="module", params=[CORE, SPLITTER], ids=lambda path: path.stem)
def module(request):
    return Elf(request.param)


def test_no_memory_is_both_written_and_run(module):
    (stack,) = module.flags(PT_GNU_STACK)
    assert not stack & PF_X
    assert not [flags for flags in module.flags(PT_LOAD) if flags & PF_W and flags & PF_X]
    assert DT_TEXTREL not in module.dynamic


def test_addresses_of_functions_are_read_only_once_it_is_loaded(module):
    assert module.flags(PT_GNU_RELRO)
    assert module.dynamic[DT_FLAGS] & DF_BIND_NOW


def test_a_smashed_stack_ends_the_process(module):
    assert "__stack_chk_fail" in module.names


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_copies_are_checked_where_the_room_is_known():
    assert {"__memcpy_chk", "__memset_chk"} & Elf(CORE).names


def test_nothing_but_the_module_is_offered_to_others(module):
    assert {name for name in module.names if "skyfast" in name} == set()
    assert {"PyInit__table", "PyInit__json_split"} & module.names
