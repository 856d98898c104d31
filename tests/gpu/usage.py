"""The options of `python3 tests/gpu`; what cannot be done as asked is refused before it begins."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from gpu import borrowed, rounds

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 480.0
BUILDS_ON = {"kills": "speed", "more-kills": "more-speed"}
"""Which part trains the undisturbed run that a part compares with."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; end with exit code 2 and a message where they cannot be followed."""
    top = _parser()
    chosen = top.parse_args(arguments)
    for option, folder in (("--out", chosen.out), ("--work", chosen.work)):
        problem = None if folder is None or chosen.pack else folder_problem(folder)
        if problem is not None:
            top.error(f"argument {option}: {problem}")
    return chosen


def folder_problem(folder: Path) -> str | None:
    """Make a folder to write into; return why that cannot be done, None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder} cannot be made: {error.strerror or error}"
    return None if os.access(folder, os.W_OK) else f"nothing can be written into {folder}"


def _parser() -> argparse.ArgumentParser:
    """Describe the options."""
    top = argparse.ArgumentParser(
        prog="python3 tests/gpu", description="Prove the trainer on a CUDA card."
    )
    top.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="where gpu.json goes")
    top.add_argument("--work", type=Path, help="a disk with 45 GB of room for the models")
    top.add_argument("--limit-s", type=_seconds, default=LIMIT_S, help="seconds for all of it")
    top.add_argument(
        "--parts", type=_parts, default=rounds.NAMES, metavar="NAMES",
        help=f"some of {', '.join(rounds.NAMES)}, with commas between",
    )  # fmt: skip
    top.add_argument("--keep", action="store_true", help="leave models, runs and logs")
    top.add_argument("--folder", type=Path, default=ROOT / borrowed.FOLDER, help="packages brought")
    top.add_argument("--pack", action="store_true", help="fill that folder, and do nothing else")
    top.add_argument("--cuda", default=borrowed.CUDA, help="CUDA generation of the card's torch")
    return top


def _parts(text: str) -> tuple[str, ...]:
    """Read the names of parts; each needs the one that it builds on."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in rounds.NAMES:
            raise argparse.ArgumentTypeError(
                f"no part is called {name!r}; there are: {', '.join(rounds.NAMES)}"
            )
        if (first := BUILDS_ON.get(name, name)) not in names:
            raise argparse.ArgumentTypeError(f"`{name}` compares with `{first}`: name both")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
