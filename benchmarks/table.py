"""Prints the latest results in the form of the table in docs/benchmarks.md.

python -m benchmarks.table
"""

import json

from benchmarks.__main__ import NAMES
from benchmarks.harness import RESULTS, number


def main() -> None:
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in NAMES]
    machine, versions = results[-1]["machine"], results[-1]["versions"]
    print(
        f"{results[-1]['date'][:10]}, {machine['cores']} cores of {machine['cpu']},"
        f" Linux {machine['kernel'].split('-')[0]}, {machine['libc']};",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    )
    print("\n| Benchmark | Measurement | Median | Ratio | Target | Result |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for result in results:
        name = result["benchmark"]
        for row in result["rows"]:
            if not row["target"] and row["ratio"] is None:
                continue
            figure = f"{number(row['median'])} {row['unit']}".strip()
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} × {row['ratio_to']}"
            verdict = {None: "", True: "met", False: "**missed**"}[row["met"]]
            print(f"| {name} | {row['what']} | {figure} | {ratio} | {row['target']} | {verdict} |")
            name = ""


if __name__ == "__main__":
    main()
