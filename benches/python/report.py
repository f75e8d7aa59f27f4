"""Writes what was measured into benches/README.md: the table, the figures, and on what machine.

    python benches/python/report.py              the page, from benches/results/*.json
    python benches/python/report.py --print      a table on the terminal, of the run just made

Nothing in the block between the two marks is written by hand. A quick run is never written there.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from _results import PROJECT, PUBLISHED, QUICK, Figure, Measured, folder
from _rows import Subjects, cpu_table, rows

PAGE = PROJECT / "benches" / "README.md"
BEGIN, END = "<!-- begin: made by report.py from results/ -->", "<!-- end -->"
SUBJECTS = (
    *("cached", "threads", "misses", "latency", "batch", "memory", "pods", "drivers"),
    *("startup", "grpc_calls"),
)
EVERY = ("", "median", "unit", "spread", "rounds")
HEADER = ("what", "at least", "aim", "measured", "met?")


def read(place: Path) -> Subjects:
    """Every subject's results in a folder."""
    return {subject: Measured.read(place, subject) for subject in SUBJECTS}


def block(of: Subjects) -> str:
    """What stands between the marks."""
    parts = [
        _machine(of),
        *_table(HEADER, [row.cells() for row in rows(of)], left=1),
        "",
        "### CPU time",
        "",
        "Seconds of CPU that the client's process took for a million calls:",
        "",
        *_table(("calls", "client", "CPU seconds", "spread"), cpu_table(of), left=2),
        "",
        *_figures(of),
        *_notes(of),
    ]
    return "\n".join(parts).rstrip() + "\n"


def page_with(text: str, made: str) -> str:
    """The page with this block in it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def _machine(of: Subjects) -> str:
    runs = {subject: measured.run for subject, measured in of.items() if measured.run}
    versions: dict[str, str] = {}
    for run in runs.values():
        versions |= run["versions"]
    first = next(iter(runs.values()), None)
    if first is None:
        return "Nothing has been measured yet.\n"
    dates = sorted({f"{run['date']}, commit {run['commit']}" for run in runs.values()})
    loads = [run["load_before"] for run in runs.values()]
    named = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    return (
        f"Measured on {'; '.join(dates)}: {first['processor']}, {first['cores']} cores,\n"
        f"{first['system']}, {first['python']}; {named}.\n"
        f"Load of the machine when the scripts began: {min(loads)} to {max(loads)}.\n"
    )


def _figures(of: Subjects) -> Iterator[str]:
    titles = {
        "cached": "Cached, nanoseconds per await",
        "threads": "Cached, many threads",
        "misses": "Misses",
        "latency": "Latency of misses at a steady rate",
        "batch": "Batches of 10,000",
        "memory": "Links, from a thousand to ten million",
        "pods": "Pods, from one to five thousand",
        "drivers": "Drivers in one process",
        "startup": "Import and wheel",
        "grpc_calls": "gRPC",
    }
    for subject, title in titles.items():
        figures = of[subject].figures
        if not figures:
            continue
        yield f"<details><summary>{title}: every figure</summary>\n"
        yield from _table(
            ("", "median", "unit", "spread", "rounds"), [_line(each) for each in figures]
        )
        yield "\n</details>\n"


def _line(figure: Figure) -> list[str]:
    return [figure.label, figure.shown, figure.unit, figure.spread, str(len(figure.rounds))]


def _notes(of: Subjects) -> Iterator[str]:
    notes = [note for measured in of.values() for note in measured.notes]
    if notes:
        yield "Said by the scripts:\n"
    yield from (f"- {note}" for note in dict.fromkeys(notes))


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|"
    for line in lines:
        yield "| " + " | ".join(line) + " |"


def print_table(of: Subjects) -> None:
    """The table for a terminal."""
    lines = [[cell.replace("*", "") for cell in row.cells()] for row in rows(of)]
    widths = [max(len(line[at]) for line in (HEADER, *lines)) for at in range(len(HEADER))]
    for line in (HEADER, *lines):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def main() -> None:
    if "--print" in sys.argv:
        print_table(read(folder()))
        if QUICK:
            print("\nA QUICK RUN: it shows that the scripts work. Not for publication.")
    else:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(page_with(page, block(read(PUBLISHED))), "utf-8")


if __name__ == "__main__":
    main()
