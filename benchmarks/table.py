"""Writes the latest results into docs/benchmarks.md, and prints them.

python -m benchmarks.table
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.__main__ import NAMES
from benchmarks.harness import RESULTS, number

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

RESULTS_PART = re.compile(r"(<!-- begin results -->\n).*(<!-- end results -->)", re.DOTALL)


def main() -> None:
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in NAMES]
    text = _text(results)
    print(text, end="")
    page, count = RESULTS_PART.subn(lambda match: match[1] + text + match[2], PAGE.read_text())
    assert count == 1, f"{PAGE} does not have one pair of markers for the results"
    PAGE.write_text(page)


def _text(results: list[dict[str, Any]]) -> str:
    """Return the machine, the versions, and the figures with a target or ratio, in Markdown."""
    latest = results[-1]
    machine = latest["machine"]
    kernel = machine["kernel"].split("-")[0]
    cores = f"{machine['cores']} cores of {machine['cpu']}"
    lines = [
        f"{latest['date'][:10]}, {cores}, Linux {kernel}, {machine['libc']}:",
        ", ".join(f"{name} {version}" for name, version in latest["versions"].items()) + ".",
        "",
        "| Benchmark | Measurement | Median | Ratio | Target | Result |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for result in results:
        name = f"{result['benchmark']}, {result['seconds']} s"
        for row in result["rows"]:
            if not row["target"] and row["ratio"] is None:
                continue
            figure = f"{number(row['median'])} {row['unit']}".strip()
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} × *{row['ratio_to']}*"
            verdict = {None: "", True: "met", False: "**missed**"}[row["met"]]
            cells = (name, row["what"], figure, ratio, row["target"], verdict)
            lines.append(f"| {' | '.join(cells)} |")
            name = ""
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
