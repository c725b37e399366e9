"""What no test runs of the core: the report of a run that gcov counted, and what is known of it.

``make coverage`` runs the tests with coverage.py, which counts the modules in Python and has its
limit in ``pyproject.toml``, and with a core that was built for gcov, which counts its lines in C;
this maps those to the core's source. (Cython's own tracing would take the GIL under the table's
lock.)

* At least `LEAST_PERCENT` of all lines must have run.
* Every line that did not is named in ``tests/support/uncovered.txt``, by its text, under the reason
  why not; a short one, such as ``return``, with the line before it. So a new line that no test runs
  fails the check, and so does a name whose line is gone. A line that is named may run: some do by
  chance.

``python -m tests.support.uncovered`` prints the report, and what is wrong.
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
LEAST_PERCENT = 90.0
SHORT = 24
"""Characters of a text that says too little by itself."""

ORIGIN = re.compile(r'\s*/\* "(skyfast/[^"]+)":(\d+)$')
NOBODYS = re.compile(r"\s*/\* (function exit code|#### Code section: .*) \*/$")


class File(NamedTuple):
    """One source file: how many lines can run, and which of them did not."""

    lines: int
    missing: list[int]


def core_files() -> dict[str, File]:
    """Return what gcov counted in the compiled modules."""
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
    """Return file and line in Cython for each line in C that has one.

    Cython writes before each statement where it comes from. (The ``#line`` directives that it can
    write instead hold for the next line alone: those behind it would count as lines of their own.)
    What leaves a function, whichever way, is nobody's, and so is what Cython itself brings along.
    """
    found = {}
    source = None
    for number, text in enumerate(c_text.splitlines(), 1):
        if origin := ORIGIN.match(text):
            source = (origin[1], int(origin[2]))
        elif NOBODYS.match(text):
            source = None
        elif source:
            found[number] = source
    return found


def known() -> Iterator[tuple[str, str]]:
    """Yield file and text of the lines that need not run."""
    for line in KNOWN.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, text = line.partition(": ")
            yield name, text


def names(path: str) -> list[str]:
    """Return what each line of a file is called."""
    lines = [line.strip() for line in (ROOT / path).read_text().splitlines()]
    before = ["", *lines]
    return [
        f"{above} | {line}" if len(line) < SHORT else line
        for above, line in zip(before, lines, strict=False)
    ]


def check(files: Mapping[str, File]) -> list[str]:
    """Return what is wrong, a line each."""
    wrong = []
    total = sum(file.lines for file in files.values())
    percent = 100 - 100 * sum(len(file.missing) for file in files.values()) / total
    if percent < LEAST_PERCENT:
        wrong.append(f"{percent:.1f} % of the lines ran, fewer than {LEAST_PERCENT:.0f} %")
    called = {path: names(path) for path in files}
    unknown = {
        (path, called[path][number - 1]): number
        for path, file in files.items()
        for number in file.missing
    }
    for path, name in known():
        unknown.pop((path, name), None)
        if name not in called.get(path, ()):
            wrong.append(f"{KNOWN.name} names what is gone: {path}: {name}")
    if unknown:
        wrong.append(f"nothing runs these, and {KNOWN.name} does not say why:")
        wrong += [f"{path}: {name}" for path, name in unknown]
    return wrong


def report(files: Mapping[str, File]) -> Iterator[str]:
    """Yield a table, worst file first."""
    total = File(
        sum(file.lines for file in files.values()), [n for f in files.values() for n in f.missing]
    )
    by_share = sorted(files.items(), key=lambda item: -len(item[1].missing) / max(1, item[1].lines))
    for name, file in [*by_share, ("total", total)]:
        percent = 100 - 100 * len(file.missing) / max(1, file.lines)
        yield f"{name:32} {file.lines:6} lines {len(file.missing):5} not run {percent:6.1f} %"


def main() -> int:
    """Print the report and what is wrong; return the exit code."""
    files = core_files()
    wrong = check(files)
    sys.stdout.write("\n".join([*report(files), *wrong, ""]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
