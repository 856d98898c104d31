"""`qft` with Azure's machines made trainable at once: they are processes of this computer.

The program is the real one. Only the set-up of a machine (drivers, Python environment) is left out,
as it is for `provider: local`: the interpreter that runs `qft` is already there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cli
from commands import wire
from infra.config import VmTable


def make_ready(_vm: VmTable, _say: Callable[[str], None]) -> wire.MakeReady:
    """Nothing to do but to name the interpreter."""
    return lambda connection, _machine: (connection, sys.executable)


if __name__ == "__main__":
    with mock.patch.object(wire, "make_ready", make_ready):
        cli.main()
