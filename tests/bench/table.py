"""Shows the results of a run as text, and as rows of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.results import Verdict, medians
from bench.rounds import Collected


def value_lines(collected: Collected) -> list[str]:
    """Return a line for each variant: its median, its range, and in how many rounds."""
    measure = collected.measure
    lines = [f"{measure.name}: {measure.title}"]
    width = max((len(name) for name in collected.samples), default=0)
    middle = medians(collected)
    for name, found in collected.samples.items():
        values = [one.value for one in found.values()]
        if not values:
            problem = collected.problems.get(name) or collected.problems.get("", "not run")
            lines.append(f"  {name:{width}}  not measured: {problem.splitlines()[0]}")
            continue
        spread = f"{min(values):.4g} to {max(values):.4g}, {len(values)} rounds"
        cpu = [one.cpu_s for one in found.values() if one.cpu_s is not None]
        shown = f"; {statistics.median(cpu):.1f} CPU s" if cpu else ""
        lines.append(f"  {name:{width}}  {middle[name]:.4g} {measure.unit} ({spread}{shown})")
    if "" in collected.problems:
        lines.append(f"  ended early: {collected.problems[''].splitlines()[0]}")
    return lines


def verdict_line(verdict: Verdict) -> str:
    """Return one comparison as a line of text."""
    value = "not measured" if verdict.value is None else f"{verdict.value:.3g}"
    bound = f", must be {verdict.bound}" if verdict.bound else ""
    word = "" if not verdict.bound else ("  met" if verdict.met else "  MISSED")
    note = f" ({verdict.note})" if verdict.note else ""
    return f"  {verdict.text}: {value}{bound}{word}{note}"


def missed(verdicts: Iterable[Verdict]) -> list[str]:
    """Name each comparison that is not as it must be."""
    return [f"{one.measure}: {verdict_line(one).strip()}" for one in verdicts if not one.met]


def page_section(
    results: Sequence[Collected], verdicts: Sequence[Verdict], facts: Mapping[str, Any], *, day: str
) -> str:
    """Return the rows of a run as a section for docs/benchmarks.md, with what they ran on."""
    packages = facts["versions"] | {f"peers' {k}": v for k, v in facts["peers"].items()}
    same = {k: v for k, v in facts["versions"].items() if v and facts["peers"].get(k, v) == v}
    other = {k: v for k, v in packages.items() if v and k.removeprefix("peers' ") not in same}
    versions = ", ".join(f"{name} {number}" for name, number in {**same, **other}.items())
    tools = ", ".join(f"{name} {number}" for name, number in facts["tools"].items() if number)
    lines = [
        f"### {day}, commit {facts['commit']}",
        "",
        *_wrapped(
            f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, "
            f"{facts['system']}; load before {facts['load_before']}; Python {facts['python']}, "
            f"{versions}; {tools}."
        ),
        "",
        "| what | median of the rounds | bound | |",
        "|---|---|---|---|",
    ]
    for collected in results:
        measure, middle = collected.measure, medians(collected)
        shown = "; ".join(f"{name} {value:.4g}" for name, value in middle.items())
        lines.append(f"| **{measure.name}**: {measure.title} | {shown} {measure.unit} | | |")
        for one in verdicts:
            if one.measure == measure.name:
                value = "not measured" if one.value is None else f"{one.value:.3g}"
                word = "" if not one.bound else ("met" if one.met else "**missed**")
                note = f" ({one.note})" if one.note else ""
                lines.append(f"| {one.text}{note} | {value} | {one.bound} | {word} |")
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int = 100) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
