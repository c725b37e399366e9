"""Shared parts of the benchmarks: the scale, the machine, child processes and results.

A figure is the median of its samples. A ratio compares two figures of the same run. If possible,
the samples of both figures are measured in turn.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

SCALE = int(os.environ.get("SKYFAST_BENCH_SCALE", "100000"))
"""Number of connections. The targets apply to the default number."""

LARGE = 10 * SCALE
"""Number of connections in benchmarks of large tables."""

RESULTS = Path(os.environ.get("SKYFAST_BENCH_RESULTS", Path(__file__).parent / "results"))
"""The directory of the results."""

T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")

PACKAGES = ("msgspec", "websockets", "aiohttp", "uvloop", "isal", "prometheus_client")


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    return {
        "skyfast": version("skyfast"),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def header() -> str:
    about = machine()
    return (
        f"{about['cores']} cores of {about['cpu']}, {about['memory_gib']} GiB,"
        f" Linux {about['kernel']}, {about['libc']}, load {about['load_1_min']}\n"
        + ", ".join(f"{name} {number}" for name, number in versions().items())
        + f"\n{SCALE:,} connections, {LARGE:,} in large tables"
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for a figure, or for the ratio of a figure."""

    limit: float
    of_ratio: bool = False
    """Whether the limit applies to the ratio instead of the figure."""
    at_least: bool = False
    """Whether the limit is a minimum instead of a maximum."""

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {number(self.limit)}{' ×' if self.of_ratio else ''}"


def at_most(limit: float) -> Target:
    return Target(limit)


def ratio_at_most(limit: float) -> Target:
    return Target(limit, of_ratio=True)


def ratio_at_least(limit: float) -> Target:
    return Target(limit, of_ratio=True, at_least=True)


@dataclass(slots=True, kw_only=True)
class Row:
    what: str
    unit: str
    samples: list[float]
    median: float
    ratio: float | None
    ratio_to: str
    target: str
    met: bool | None


class Report:
    """The results of a benchmark, printed as a table and written to `RESULTS` as JSON."""

    def __init__(self, name: str, question: str) -> None:
        self.name = name
        self.question = question
        self.rows: list[Row] = []
        self._began_s = time.monotonic()

    def add(
        self,
        what: str,
        samples: Sequence[float],
        unit: str,
        *,
        to: str = "",
        over: Sequence[float] | None = None,
        target: Target | None = None,
    ) -> None:
        """Add a figure.

        The ratio compares ``samples`` with ``over``, the samples of the figure ``to``. If both have
        the same length, the two figures were measured in turn: the ratio is the median of the
        ratios of the pairs. Otherwise, the ratio is the quotient of the medians.
        """
        median = statistics.median(samples)
        ratio = None if over is None else _ratio(samples, over)
        met = None
        if target is not None:
            figure = ratio if target.of_ratio else median
            assert figure is not None
            met = target.met(figure)
        self.rows.append(
            Row(
                what=what,
                unit=unit,
                samples=list(samples),
                median=median,
                ratio=ratio,
                ratio_to=to,
                target="" if target is None else str(target),
                met=met,
            )
        )

    def finish(self) -> None:
        """Print the results, and write them to `RESULTS`."""
        cells = [("", "median", "", "minimum … maximum", "ratio", "", "target", "")]
        for row in self.rows:
            spread = f"{number(min(row.samples))} … {number(max(row.samples))}"
            cells.append(
                (
                    row.what,
                    number(row.median),
                    row.unit,
                    spread if len(row.samples) > 1 else "",
                    "" if row.ratio is None else f"{row.ratio:.2f} ×",
                    row.ratio_to,
                    row.target,
                    {None: "", True: "met", False: "missed"}[row.met],
                )
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = (1, 4, 6)
        took_s = time.monotonic() - self._began_s
        print(f"\n{self.name}: {self.question} ({took_s:.0f} s)")
        for line in cells:
            padded = (
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            print("  " + "  ".join(padded).rstrip(), flush=True)
        RESULTS.mkdir(exist_ok=True)
        content = {
            "benchmark": self.name,
            "seconds": round(took_s),
            "question": self.question,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "scale": SCALE,
            "machine": machine(),
            "versions": versions(),
            "rows": [asdict(row) for row in self.rows],
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _ratio(samples: Sequence[float], peer: Sequence[float]) -> float:
    if len(samples) == len(peer):
        return statistics.median(a / b for a, b in zip(samples, peer, strict=True))
    return statistics.median(samples) / statistics.median(peer)


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.3g}"


class Remote(Generic[T_co]):
    """An object in its own process.

    The process is a new interpreter, so that measurements share neither the heap nor caches. If the
    process only generates load, it has a higher ``nice`` value.

        with Remote(Core, SCALE) as core:
            core.call(Core.fill, 1_000)
    """

    def __init__(self, factory: Callable[..., T_co], *args: Any, nice: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child_pipe, factory, args, nice), daemon=True
        )
        self._process.start()
        child_pipe.close()
        self._result()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def call(
        self,
        method: Callable[Concatenate[T_co, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a method of the object. Raises RuntimeError if the method fails."""
        return self.begin(method, *args, **kwargs)()

    def begin(
        self,
        method: Callable[Concatenate[T_co, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Callable[[], R]:
        """Call a method without waiting. Return a function that waits for the returned value."""
        self._pipe.send((method.__name__, args, kwargs))
        return self._result

    def _result(self) -> Any:
        succeeded, value = self._pipe.recv()
        if not succeeded:
            raise RuntimeError(f"in a child process:\n{value}")
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Any, factory: Callable[..., Any], args: tuple[Any, ...], nice: int) -> None:
    os.nice(nice)
    subject: Any = None
    method: Any = factory
    kwargs: dict[str, Any] = {}
    try:
        while True:
            try:
                value = method(*args, **kwargs)
                if subject is None:
                    subject, value = value, None
                reply = (True, value)
            except Exception:  # noqa: BLE001  # the parent process raises an error with this text
                reply = (False, traceback.format_exc())
            pipe.send(reply)
            name, args, kwargs = pipe.recv()
            method = getattr(subject, name)
    except (EOFError, ConnectionError):
        return
