"""Draws benches/results/*.json as pictures beside them.

    python benches/python/plots.py

Each picture carries a hash of the data that it was drawn from, so that a test can say whether it
is older than the data. Colours are those of Okabe and Ito, which everybody can tell apart; each
contender has the same one everywhere, and a mark of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _pictures import PICTURES, SOURCE, source_of
from _results import CPU, Figure, Measured, folder

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

DOTS_PER_INCH = 110
_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_YELLOW, _BLUE, _RED, _PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
_GREY = "#888888"
_LOOKS: dict[str, tuple[str, str, str]] = {
    # contender: colour, mark, line
    "podlink": (_BLUE, "o", "-"),
    "podlink compute_linked_pod": (_BLUE, "o", "-"),
    "podlink service handle": (_SKY, "o", "-"),
    "podlink, at most 1,000,000": (_SKY, "D", "-"),
    "redis-py": (_RED, "s", "-"),
    "redis-py, 32 connections": (_ORANGE, "s", "-"),
    "valkey-glide": (_GREEN, "^", "-"),
    "coredis": (_PURPLE, "v", "-"),
    "grpc.aio": (_RED, "s", "-"),
    "nothing, called as compute_linked_pod is": (_PURPLE, "s", "-"),
    "dict": (_GREY, "s", "-"),
    "dict, key (namespace, uid, service)": (_GREY, "s", "-"),
    "dict, key uid": (_BLACK, "s", "-"),
    "cachetools.TTLCache": (_ORANGE, "^", "-"),
    "aiocache.SimpleMemoryCache": (_PURPLE, "v", "-"),
    "redis-rs and tokio, 1 thread": (_GREY, "x", "--"),
    "redis-rs and tokio, 2 threads": (_BLACK, "x", "--"),
    "redis-benchmark, a connection for each": (_GREY, "+", ":"),
    "redis-benchmark, one pipelined connection": (_BLACK, "+", ":"),
}
LOOPS = ("asyncio", "uvloop")


def _look(who: str) -> dict[str, Any]:
    colour, mark, line = _LOOKS[who]
    return {"color": colour, "marker": mark, "linestyle": line, "label": who, "markersize": 6}


def _curve(axes: Axes, figures: Sequence[Figure], along: str) -> None:
    """One contender's medians along a case, with the range of the rounds as bars."""
    at = [float(figure.case[along]) for figure in figures]
    middle = [figure.median for figure in figures]
    low = [figure.median - min(figure.rounds) for figure in figures]
    high = [max(figure.rounds) - figure.median for figure in figures]
    axes.errorbar(at, middle, yerr=[low, high], capsize=2, elinewidth=0.8, **_look(figures[0].who))


def _curves(axes: Axes, of: Measured, unit: str, along: str, **case: str) -> None:
    """Every contender that was measured in this unit. What was called is not among them."""
    everybody: dict[str, list[Figure]] = {}
    for figure in of.select(unit, **case):
        if "called_by" in figure.case:
            continue
        everybody.setdefault(figure.who, []).append(figure)
    for figures in everybody.values():
        _curve(axes, sorted(figures, key=lambda figure: float(figure.case[along])), along)


def _bars(axes: Axes, figures: Sequence[Figure], unit: str) -> None:
    """One bar for each, the figure beside it."""
    names = [figure.who for figure in figures]
    middle = [figure.median for figure in figures]
    low = [figure.median - min(figure.rounds) for figure in figures]
    high = [max(figure.rounds) - figure.median for figure in figures]
    colours = [_LOOKS[name][0] for name in names]
    axes.barh(names, middle, xerr=[low, high], color=colours, capsize=2, height=0.65)
    for row, figure in enumerate(figures):
        end = max(figure.rounds)
        axes.annotate(f" {figure.shown}", (end, row), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)


def _logarithmic(axes: Axes, across: str, up: str, *, both: bool = True) -> None:
    """Axes for a curve of growth: marks across where something was measured."""
    measured = sorted({float(x) for line in axes.get_lines() for x in line.get_xdata()})
    axes.set_xscale("log")
    axes.set_xticks(measured)
    axes.minorticks_off()
    if both:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(which="major", alpha=0.3)
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_counted))
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(_counted))


def _counted(number: float, _position: int) -> str:
    return f"{number:,.0f}" if number >= 10 or number == round(number) else f"{number:g}"


def _panels(count: int, title: str, *, width: float = 5.2, height: float = 4.2) -> Any:
    canvas, panels = plt.subplots(
        1, count, figsize=(width * count, height), layout="constrained", squeeze=False
    )
    canvas.suptitle(title)
    return canvas, list(panels[0])


def cached(of: Measured) -> Canvas:
    cases = ("one", "100,000", "1,000,000")
    canvas, panels = _panels(3, "A cached answer, per await (shorter is better)", width=5.6)
    for axes, users in zip(panels, cases, strict=True):
        figures = [f for f in of.select("ns", users=users) if "aiocache" not in f.who]
        _bars(axes, figures, "ns per await")
        axes.set_title("one user" if users == "one" else f"users at random out of {users}")
    return canvas


def misses(of: Measured) -> Canvas:
    title = "Computes that the cache cannot answer, on a real Valkey (higher is better)"
    canvas, panels = _panels(2, title, width=6.4, height=5.2)
    for axes, loop in zip(panels, LOOPS, strict=True):
        _curves(axes, of, "calls/s", "tasks", loop=loop)
        limits = [figure for figure in of.select("calls/s") if "loop" not in figure.case]
        for who in dict.fromkeys(figure.who for figure in limits):
            _curve(axes, [figure for figure in limits if figure.who == who], "tasks")
        _logarithmic(axes, "tasks that ask at once", "calls per second")
        axes.set_title(f"{loop}; limits dashed and dotted")
    panels[0].sharey(panels[1])
    handles, labels = panels[1].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return canvas


def cpu(of: Measured) -> Canvas:
    title = "CPU seconds of the client's process per million misses, 64 tasks (shorter is better)"
    canvas, panels = _panels(2, title, width=6.0, height=3.6)
    for axes, loop in zip(panels, LOOPS, strict=True):
        figures = [*of.select(CPU, tasks=64, loop=loop)]
        figures += [f for f in of.select(CPU, tasks=64) if "loop" not in f.case]
        _bars(axes, figures, "CPU seconds per million calls")
        axes.set_title(loop)
    return canvas


def latency(of: Measured) -> Canvas:
    title = "Latency of a miss at a steady rate, from when it was due (shorter is better)"
    canvas, panels = _panels(2, title, width=6.0, height=4.0)
    for axes, at in zip(panels, ("half of redis-py's peak", "half of podlink's peak"), strict=True):
        rate = of.find("calls/s", "everybody", at=at)
        lines = [(f.who, str(f.case["loop"])) for f in of.select("µs, p99", at=at)]
        for row, (who, loop) in enumerate(lines):
            half = of.find("µs, median", who, loop=loop, at=at)
            tail = of.find("µs, p99", who, loop=loop, at=at)
            if half is None or tail is None:
                continue
            colour = _LOOKS[who][0]
            axes.plot([half.median, tail.median], [row, row], color=colour, linewidth=2)
            axes.plot(half.median, row, "o", color=colour, fillstyle="none")
            axes.plot(tail.median, row, "o", color=colour)
            axes.annotate(f"  {tail.shown}", (tail.median, row), va="center", fontsize=8)
        axes.set_yticks(range(len(lines)), [f"{who}, {loop}" for who, loop in lines])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.set_xlabel("µs: median (open), p99 (filled)")
        axes.grid(axis="x", which="both", alpha=0.2)
        axes.set_title(f"{at}: {rate.shown if rate else '?'} calls/s")
    return canvas


def memory(of: Measured) -> Canvas:
    canvas, panels = _panels(2, "Remembered links (lower is better)", width=6.0)
    _curves(panels[0], of, "MB", "links")
    _logarithmic(panels[0], "links", "resident memory, MB")
    panels[0].set_ylim(bottom=0.1)  # less than that is the allocator's whim
    panels[0].set_title("memory; a bounded cache holds its bound")
    _curves(panels[1], of, "ns", "links")
    _logarithmic(panels[1], "links", "ns per await, users at random", both=False)
    panels[1].set_title("time of a cached answer")
    panels[0].legend(fontsize=8)
    return canvas


def pods(of: Measured) -> Canvas:
    canvas, panels = _panels(3, "Pods of a service", width=5.0)
    for axes, unit, up in (
        (panels[0], "µs/choice", "µs per get_service_best_pod"),
        (panels[1], "computes/s", "cache-missing computes per second"),
    ):
        _curves(axes, of, unit, "pods")
        _logarithmic(axes, "pods", up, both=False)
    for news, line in (("nothing new", "--"), ("all new", "-")):
        figures = [*of.select(f"ms of CPU/refresh, {news}")]
        at = [float(figure.case["pods"]) for figure in figures]
        middle = [figure.median for figure in figures]
        panels[2].plot(at, middle, color=_BLUE, marker="o", linestyle=line, label=news)
    _logarithmic(panels[2], "pods", "ms of CPU per state refresh")
    panels[2].legend(fontsize=8)
    titles = ("choosing", "placing users, 64 tasks", "reading their states")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
    return canvas


def drivers(of: Measured) -> Canvas:
    units = {
        "misses/s": "misses per second, 64 tasks",
        "MB": "resident memory of all, MB",
        "ms of CPU/idle second": "ms of CPU per idle second",
    }
    canvas, panels = _panels(3, "Client drivers in one process, a store each", width=4.6)
    for axes, (unit, up) in zip(panels, units.items(), strict=True):
        _curves(axes, of, unit, "drivers")
        _logarithmic(axes, "drivers", up, both=False)
    return canvas


def grpc(of: Measured) -> Canvas:
    canvas, panels = _panels(2, "set-if-absent over gRPC, one server", width=5.4)
    _curves(panels[0], of, "calls/s", "tasks")
    _logarithmic(panels[0], "tasks that ask at once", "calls per second")
    _curves(panels[1], of, CPU, "tasks")
    up = "CPU seconds of the client per million calls"
    _logarithmic(panels[1], "tasks that ask at once", up, both=False)
    panels[0].legend(fontsize=8)
    return canvas


_DRAWN: dict[str, Callable[[Measured], Canvas]] = {
    "cached": cached,
    "misses": misses,
    "cpu": cpu,
    "latency": latency,
    "memory": memory,
    "pods": pods,
    "drivers": drivers,
    "grpc": grpc,
}


def draw(place: Path) -> None:
    """Draws every picture whose subject has been measured."""
    for name, subject in PICTURES.items():
        of = Measured.read(place, subject)
        if not of.figures:
            continue
        canvas = _DRAWN[name](of)
        about = {SOURCE: source_of(place, subject), "Software": None}
        canvas.savefig(place / f"{name}.png", dpi=DOTS_PER_INCH, metadata=about)
        plt.close(canvas)


if __name__ == "__main__":
    draw(folder())
