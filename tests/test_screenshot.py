"""Opened in a real browser, report and audit show every plot that they name."""

from __future__ import annotations

import json
import struct
import zlib
from itertools import combinations
from pathlib import Path

import pytest
from support.audits import audited
from support.browser import browser
from support.reports import run_dir

from trainer.pages import audit, report

__all__ = ["run_dir"]  # a fixture of another file, found by its name here

WIDTH, HEIGHT = 1000, 6000
PLOTS = """[...document.querySelectorAll("svg[role=img]")].map((one) => {
  const box = one.getBoundingClientRect();
  return [one.getAttribute("aria-label"), box.left, box.top, box.width, box.height]; })"""
OPEN = """document.querySelectorAll("details:has(svg[role=img])").forEach((one) => {
  one.open = true; })"""
Box = tuple[str, float, float, float, float]


def shot(page: Path, scratch: Path) -> tuple[list[Box], list[bytes]]:
    """Return the plots' names and boxes, and the rows of RGB pixels of the whole page."""
    picture = scratch / f"{page.stem}.png"
    with browser(scratch / f"profile-{page.stem}") as tab:
        tab.open(page.as_uri(), width=WIDTH, height=HEIGHT)
        tab.ask(OPEN)
        boxes = [tuple(one) for one in tab.ask(PLOTS)]
        tab.screenshot(picture)
    return boxes, pixels(picture.read_bytes())


def pixels(png: bytes) -> list[bytes]:
    """Decode a PNG of eight bits per channel, not interlaced (PNG specification, section 9)."""
    at, data, channels = 8, b"", 0
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, depth, colour, interlaced = struct.unpack(">I4xBB2xB", body)
            assert (depth, interlaced) == (8, 0)
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        at += 12 + size
    raw, stride = zlib.decompress(data), width * channels
    rows: list[bytes] = []
    before = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = unfilter(
            raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, channels
        )
        rows.append(bytes(v for at, v in enumerate(line) if at % channels < 3))
        before = line
    return rows


def unfilter(kind: int, line: bytearray, before: bytearray, step: int) -> bytearray:
    """Undo the filter of one line."""
    for at in range(len(line) if kind else 0):
        left = line[at - step] if at >= step else 0
        above = before[at]
        corner = before[at - step] if at >= step else 0
        if kind == 4:
            guess = left + above - corner
            near = min((left, above, corner), key=lambda one: abs(guess - one))
        else:
            near = {1: left, 2: above, 3: (left + above) // 2}[kind]
        line[at] = (line[at] + near) & 255
    return line


def drawn(rows: list[bytes], box: Box) -> tuple[int, int]:
    """Return how many columns and rows of a plot's inside hold pixels of colour."""
    _, left, top, width, height = box
    columns, lines = set(), set()
    for y in range(int(top) - 2, min(int(top + height) + 2, len(rows))):  # a line has a width
        for x in range(int(left), int(left + width)):
            pixel = rows[y][3 * x : 3 * x + 3]
            if max(pixel) - min(pixel) > 40:  # neither paper, grid nor letters: those are grey
                columns.add(x)
                lines.add(y)
    return len(columns), len(lines)


def dark(rows: list[bytes], box: Box) -> int:
    """Return how many pixels of a plot are almost black: some of its name, and no surface."""
    _, left, top, width, height = box
    inside = [row[3 * int(left) : 3 * int(left + width)] for row in rows[int(top) :][: int(height)]]
    return sum(max(row[at : at + 3]) < 40 for row in inside for at in range(0, len(row), 3))


@pytest.mark.slow
def test_every_plot_of_the_report_is_drawn(run_dir: Path, tmp_path: Path) -> None:
    """Loss, validation, throughput and calibration hold coloured lines or bars, apart."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    for line in lines[4::5]:
        line["validation_loss"] = 1 + 4 / line["step"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report.write(run_dir, tmp_path, {"evictions": [{"step": 12}], "usd": 0.02}, name="run")
    boxes, rows = shot(tmp_path / "report.html", tmp_path)

    assert [box[0] for box in boxes] == [
        "Training loss", "Validation loss", "Learning rate", "Throughput", "Calibration",
        "Calibration",
    ]  # fmt: skip
    check(boxes, rows)


@pytest.mark.slow
def test_every_plot_of_the_audit_is_drawn(tmp_path: Path) -> None:
    """The histogram of lengths, and whatever else the audit draws, hold coloured bars."""
    page = tmp_path / "audit.html"
    page.write_text(audit.as_page(audited(tmp_path), "moods"), encoding="utf-8")
    boxes, rows = shot(page, tmp_path)

    assert boxes != []
    check(boxes, rows)


def check(boxes: list[Box], rows: list[bytes]) -> None:
    """Each plot lies wholly in the picture, over no other one, and is drawn broadly."""
    for one, other in combinations(boxes, 2):
        beside = one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]

        assert beside or one[2] + one[4] <= other[2], f"{one[0]} lies over {other[0]}"
    for box in boxes:
        columns, lines = drawn(rows, box)

        assert box[2] + box[4] <= HEIGHT
        assert columns > box[3] / 4, f"{box[0]}: colour in {columns} columns only"
        assert lines >= 2, f"{box[0]}: colour in {lines} rows only"
        assert dark(rows, box) < 0.02 * box[3] * box[4], f"{box[0]}: a surface is filled in black"
