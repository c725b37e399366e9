"""Draws docs/growth.svg: the costs of skyfast and of the naive connector.

    python -m benchmarks.plots

The naive connector takes a few minutes and 5 GiB of memory.
"""

import statistics
from pathlib import Path

import matplotlib as mpl

from benchmarks.bench_growth import Measurement, Naive, measure
from benchmarks.core import Core
from benchmarks.harness import SCALE, header

PATH = Path(__file__).parent.parent / "docs" / "growth.svg"

SKYFAST_COLOR, NAIVE_COLOR, TEXT_COLOR = "#0b7285", "#c2410c", "#6b7280"
"""Colors that fit light and dark pages, and are distinct even with red-green blindness."""

_LABEL = {"textcoords": "offset points", "ha": "right"}


def draw(skyfast: list[Measurement], naive: list[Measurement]) -> None:
    mpl.use("svg")
    mpl.rcParams |= {
        "svg.hashsalt": "skyfast",  # makes the file depend only on the figures
        "font.size": 10,
        "text.color": TEXT_COLOR,
        "axes.labelcolor": TEXT_COLOR,
        "axes.edgecolor": TEXT_COLOR,
        "xtick.color": TEXT_COLOR,
        "ytick.color": TEXT_COLOR,
    }
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, points, color, label_offset in (
        ("skyfast", skyfast, SKYFAST_COLOR, (0, 8)),
        ("naive Python", naive, NAIVE_COLOR, (0, -16)),
    ):
        connections = [point.connections for point in points]
        known_us = [statistics.median(point.known_ns) / 1e3 for point in points]
        time.plot(connections, known_us, color=color, marker="o")
        time.annotate(name, (connections[-1], known_us[-1]), label_offset, color=color, **_LABEL)
        bytes_ = [point.bytes_ for point in points]
        memory.plot(connections, bytes_, color=color, marker="o")
        memory.annotate(name, (connections[-1], bytes_[-1]), label_offset, color=color, **_LABEL)
    time.set_title("CPU time of an update, µs", loc="left")
    memory.set_title("Memory of a connection, bytes", loc="left")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="connections")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(bottom=axes.get_ylim()[0] / 2, top=axes.get_ylim()[1] * 2)
    figure.savefig(PATH, transparent=True, metadata={"Date": None})


def main() -> None:
    print(header())
    skyfast = measure(Core, reports=SCALE // 2, repeats=3)
    naive = measure(Naive, reports=SCALE // 10, repeats=1)
    draw(skyfast, naive)
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
