"""Reports the lines of the core that no test runs, and compares them with ``uncovered.txt``.

``make coverage`` runs the tests with a core that is built for gcov, and then this module. gcov
counts lines of C, which this module maps to lines of the Cython source. (Cython's own tracing would
take the GIL while the table's lock is held.)

* At least `LEAST_PERCENT` of all lines must have run.
* ``tests/support/uncovered.txt`` must list every line that did not run, grouped by reason. A short
  line, such as ``return``, is listed together with the line before it.
* Listed lines must exist. A listed line may run, because some lines run only by chance.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

BUILD = ROOT / "build" / "coverage"
KNOWN = Path(__file__).with_name("uncovered.txt")
LEAST_PERCENT = 95.0
SHORT = 24
"""Shorter lines are listed together with the line before them."""

ORIGIN = re.compile(r'\s*/\* "(skyfast/[^"]+)":(\d+)$')
NO_SOURCE = re.compile(r"\s*/\* (function exit code|#### Code section: .*) \*/$")


class File(NamedTuple):
    """A source file: its number of executable lines, and the lines that did not run."""

    lines: int
    missing: list[int]


def core_files() -> dict[str, File]:
    return {**_counted("_table"), **_counted("_json_split")}


def _counted(module: str) -> dict[str, File]:
    (counters,) = BUILD.rglob(f"{module}.gcda")
    (c_file,) = BUILD.rglob(f"{module}.c")
    gcov = ("gcov", "--json-format", "--stdout", str(counters))
    done = subprocess.run(gcov, cwd=ROOT, check=True, capture_output=True, text=True)
    counted = {part["file"]: part["lines"] for part in json.loads(done.stdout)["files"]}
    sources = source_lines(c_file.read_text())
    counts: dict[str, Counter[int]] = {}
    for line in counted[str(c_file.relative_to(ROOT))]:
        if source := sources.get(line["line_number"]):
            name, number = source
            counts.setdefault(name, Counter())[number] += line["count"]
    return {
        name: File(len(lines), sorted(number for number, count in lines.items() if not count))
        for name, lines in counts.items()
    }


def source_lines(c_text: str) -> dict[int, tuple[str, int]]:
    """Map line numbers of the C code to the file and the line of the Cython source.

    Cython writes the source line of each statement above its C code. (With Cython's ``#line``
    directives, gcov would map only the first C line of each statement.) Cython's own functions, and
    code that leaves a function, have no source line.
    """
    result = {}
    source = None
    for number, text in enumerate(c_text.splitlines(), 1):
        if origin := ORIGIN.match(text):
            source = (origin[1], int(origin[2]))
        elif NO_SOURCE.match(text):
            source = None
        elif source:
            result[number] = source
    return result


def known() -> Iterator[tuple[str, str]]:
    """Yield the file and the text of each listed line."""
    for line in KNOWN.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, text = line.partition(": ")
            yield name, text


def names(path: str) -> list[str]:
    """Return the text for each line of a file, as in ``uncovered.txt``."""
    lines = [line.strip() for line in (ROOT / path).read_text().splitlines()]
    before = ["", *lines]
    return [
        f"{above} | {line}" if len(line) < SHORT else line
        for above, line in zip(before, lines, strict=False)
    ]


def check(files: Mapping[str, File]) -> list[str]:
    """Return the errors, one per line."""
    errors = []
    total = sum(file.lines for file in files.values())
    percent = 100 - 100 * sum(len(file.missing) for file in files.values()) / total
    if percent < LEAST_PERCENT:
        errors.append(f"{percent:.1f} % of the lines ran, fewer than {LEAST_PERCENT:.0f} %")
    names_by_path = {path: names(path) for path in files}
    unknown = {
        (path, names_by_path[path][number - 1]): number
        for path, file in files.items()
        for number in file.missing
    }
    for path, name in known():
        unknown.pop((path, name), None)
        if name not in names_by_path.get(path, ()):
            errors.append(f"{KNOWN.name} names a line that does not exist: {path}: {name}")
    if unknown:
        errors.append(f"lines that no test runs and {KNOWN.name} does not name:")
        errors += [f"{path}: {name}" for path, name in unknown]
    return errors


def report(files: Mapping[str, File]) -> Iterator[str]:
    """Yield a table, in which files with the most uncovered lines come first."""
    total = File(
        sum(file.lines for file in files.values()), [n for f in files.values() for n in f.missing]
    )
    by_share = sorted(files.items(), key=lambda item: -len(item[1].missing) / max(1, item[1].lines))
    for name, file in [*by_share, ("total", total)]:
        percent = 100 - 100 * len(file.missing) / max(1, file.lines)
        yield f"{name:32} {file.lines:6} lines {len(file.missing):5} not run {percent:6.1f} %"


def main() -> int:
    files = core_files()
    errors = check(files)
    sys.stdout.write("\n".join([*report(files), *errors, ""]))
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
