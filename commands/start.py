"""Starts `qft`: Ctrl-C while its parts are still loading ends it as at any later moment."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; exit 130, without a traceback, if that is interrupted."""
    try:
        import cli

        cli.main()
    except KeyboardInterrupt:
        from commands.output import tell_interrupt

        sys.exit(tell_interrupt(as_json="--json" in sys.argv[1:]))
