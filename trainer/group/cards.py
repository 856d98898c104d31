"""Finds out which cards this machine has, and which of them the ranks of a training use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICES = Path("/dev")
_CARD = re.compile(r"nvidia\d+")


def find_cards(environ: Mapping[str, str], devices: Path = DEVICES) -> list[str]:
    """Return the cards as `CUDA_VISIBLE_DEVICES` names them; none on a machine without.

    Where that variable is set, it names all that may be used. CUDA is not asked, so no library is
    loaded and no memory of a card is taken. It numbers the cards it can use without gaps, whatever
    the numbers of their device files: in a container there may be only `nvidia3`, which is card 0.
    """
    if VISIBLE in environ:
        named = [one.strip() for one in environ[VISIBLE].split(",")]
        end = next((at for at, one in enumerate(named) if one in {"", "-1"}), len(named))
        return named[:end]  # as CUDA reads it: up to the first that is none
    found = [path for path in devices.glob("nvidia[0-9]*") if _CARD.fullmatch(path.name)]
    return [str(number) for number in range(len(found))]


def assign_cards(wanted: int, cards: Sequence[str]) -> list[str | None]:
    """Return the card of each rank: as many as are wanted and there are; None is a process on CPU.

    Without any card, all the wanted ranks are processes on the CPU.
    """
    return [*cards[:wanted]] if cards else [None] * wanted
