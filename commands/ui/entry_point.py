"""Starts `qft` so that Ctrl-C while its modules are loading ends it as at any later moment."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Load the command line and run it; exit 130, without a traceback, if that is interrupted."""
    try:
        here = os.path.abspath(__file__)  # noqa: PTH100
        ours = os.path.dirname(os.path.dirname(os.path.dirname(here)))  # noqa: PTH120
        # Before anything else is imported.
        sys.path[:] = without_current_folder(sys.path, ours=ours)
        # It would look 85 times at modules that stay; `cli.load_command` enables it again.
        gc.disable()
        # Looking for them would read the metadata of every installed package.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        import cli

        cli.main()
    except KeyboardInterrupt:
        from commands.ui.output import print_interrupted

        sys.exit(print_interrupted(as_json="--json" in sys.argv[1:]))


def without_current_folder(path: list[str], *, ours: str) -> list[str]:
    """Remove the current folder from the places to import from, unless it is our own.

    A PYTHONPATH with an empty part brings it there, such as `$PYTHONPATH:/more` where the variable
    was not set; then a `random.py` beside run.yaml would be executed as the module of that name.
    """
    try:
        here = os.getcwd()  # noqa: PTH109  (nothing may be imported yet)
    except OSError:  # it was removed
        return path
    return [place for place in path if os.path.abspath(place) != here or place == ours]  # noqa: PTH100
