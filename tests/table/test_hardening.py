"""Hardening: compiler and linker flags of ``setup.py`` have their effect in the shared objects.

The constants are those of the ELF specification and its Linux extensions (``elf.h``).
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
    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        assert self.data[:5] == b"\x7fELF\x02", "not a 64-bit ELF file"
        self._order = "<" if self.data[5] == 1 else ">"
        (offset,) = self._read("Q", 32)
        size, count = self._read("HH", 54)
        self.segments = [self._read("IIQQQQ", offset + n * size) for n in range(count)]
        """Tuples of type, flags, offset, virtual address, physical address, size in the file."""

    def _read(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, self.data, offset)

    def flags(self, kind: int) -> list[int]:
        return [flags for type_, flags, *_ in self.segments if type_ == kind]

    @property
    def dynamic(self) -> dict[int, int]:
        """The values in the dynamic section, by tag."""
        (dynamic,) = [segment for segment in self.segments if segment[0] == PT_DYNAMIC]
        _, _, start, _, _, size = dynamic
        return dict(self._read("qQ", offset) for offset in range(start, start + size, 16))

    @property
    def names(self) -> set[str]:
        """The names of imported and exported symbols."""
        address, size = self.dynamic[DT_STRTAB], self.dynamic[DT_STRSZ]
        for kind, _, offset, start, _, length in self.segments:
            if kind == PT_LOAD and start <= address < start + length:
                begin = offset + address - start
                return set(self.data[begin : begin + size].decode().split("\0"))
        raise AssertionError("no segment contains the names")


@pytest.fixture(scope="module", params=[CORE, SPLITTER], ids=lambda path: path.stem)
def module(request):
    return Elf(request.param)


def test_no_segment_is_writable_and_executable(module):
    (stack,) = module.flags(PT_GNU_STACK)
    assert not stack & PF_X
    assert not [flags for flags in module.flags(PT_LOAD) if flags & PF_W and flags & PF_X]
    assert DT_TEXTREL not in module.dynamic


def test_relocations_are_read_only(module):
    assert module.flags(PT_GNU_RELRO)
    assert module.dynamic[DT_FLAGS] & DF_BIND_NOW


def test_stack_protector_is_enabled(module):
    assert "__stack_chk_fail" in module.names


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has fortified functions")
def test_calls_of_memcpy_or_memset_are_fortified():
    assert {"__memcpy_chk", "__memset_chk"} & Elf(CORE).names


def test_only_the_module_init_function_is_exported(module):
    assert {name for name in module.names if "skyfast" in name} == set()
    assert {"PyInit__table", "PyInit__json_split"} & module.names
