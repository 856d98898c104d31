r"""Runs a command in a terminal of 100 columns and draws its screen as SVG at a chosen moment.

The picture in the README, made again (QFT_HOME keeps the run apart from your own):

    python examples/quickstart/prepare.py
    QFT_HOME=/tmp/picture python docs/pictures/terminal.py --moment '7[0-9]/90' \
      --svg docs/pictures/terminal.svg -- qft run examples/quickstart/run.yaml
"""
# ruff: noqa: INP001  (a script, and no package)

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS, ROWS = 100, 40
CONTROL = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([\r\n])")
"""What moves the cursor or erases: the sequences that rich's live display writes, and line ends."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FORMAT = """\
<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect fill="#0c0c0c" width="100%" height="100%" rx="8"/>
<g transform="translate(9, 9)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own, without the window frame and without the fonts that it fetches from elsewhere."""


class Screen:
    """The lines of a terminal, colours in them, as far as rich's live display moves among them."""

    def __init__(self, moment: re.Pattern[str]) -> None:
        self.lines = [""]
        self.row = 0
        self.moment = moment
        self.caught: list[str] = []

    @property
    def shown(self) -> list[str]:
        """The lines, without empty ones at the end."""
        end = max((at for at, line in enumerate(self.lines, 1) if plain(line)), default=0)
        return self.lines[:end]

    def feed(self, text: str) -> None:
        """Take what a program wrote, and keep the first screen that shows the moment."""
        at = 0
        for control in CONTROL.finditer(text):
            self.lines[self.row] += text[at : control.start()]
            at = control.end()
            self._obey(control)
        self.lines[self.row] += text[at:]

    def _obey(self, control: re.Match[str]) -> None:
        number, letter, end = control.groups()
        if end == "\n":
            self.row += 1
            if self.row == len(self.lines):
                self.lines.append("")
        elif letter == "A":
            self.row -= int(number or 1)
        elif letter == "K":
            self._look()  # the live part is erased from its last line upwards: it was whole
            self.lines[self.row] = ""
        elif letter == "m":
            self.lines[self.row] += control.group()

    def _look(self) -> None:
        if self.caught or self.row != len(self.shown) - 1:
            return
        if self.moment.search("\n".join(map(plain, self.lines))):
            self.caught = self.shown


def plain(line: str) -> str:
    """Return the line without colours."""
    return COLOUR.sub("", line)


def run(command: list[str]) -> tuple[str, int]:
    """Run the command in a terminal; return all that it wrote, and its exit status."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES=str(ROWS))
        os.execvp(command[0], command)  # noqa: S606  (the command is the argument)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    data = b""
    while more := read(terminal):
        data += more
    return data.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read(terminal: int) -> bytes:
    """Return what comes next; nothing once no process writes to the terminal any more."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # this is how Linux ends a terminal
        return b""


def draw(lines: list[str]) -> str:
    """Return the lines as an SVG picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in [*lines, ""]:  # the empty one is the margin below
        console.print(Text.from_ansi(line), highlight=False)
    return console.export_svg(title="qft", theme=MONOKAI, code_format=FORMAT, unique_id="qft")


def main() -> int:
    """Run the command, write the picture, and print what stayed on the screen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moment", required=True, help="draw the first screen that shows it")
    parser.add_argument("--svg", required=True, type=Path)
    parser.add_argument("command", nargs="+")
    wanted = parser.parse_args()
    screen = Screen(re.compile(wanted.moment))
    text, status = run(wanted.command)
    screen.feed(text)
    sys.stdout.write("".join(f"{plain(line)}\n" for line in screen.shown))
    if not screen.caught:
        sys.stderr.write("the moment never came: no picture\n")
        return status or 1
    lines = [f"$ {' '.join(wanted.command)}", *screen.caught]
    wanted.svg.write_text(draw(lines), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
