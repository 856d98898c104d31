"""Serves the page of one run until Ctrl-C."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder
from commands.runs.live.document import make_document
from commands.runs.live.feed import Feed
from commands.runs.live.run_view import RunView
from commands.runs.live.server import LiveServer
from commands.runs.live.watch import Watch


def serve(
    folder: RunFolder,
    loaded: LoadedConfig,
    *,
    on_url: Callable[[str], None],
    on_message: Callable[[str], None],
) -> None:
    """Serve the page of a run, and refresh it, until interrupted; `on_url` gets its address once.

    Raises what reading the journal raises, and `OSError` if no port can be had.
    """
    with (
        contextlib.suppress(KeyboardInterrupt),  # how a person ends the page, and not the run
        tempfile.TemporaryDirectory(prefix="qft-live-") as scratch,
    ):
        feed = Feed()
        view = RunView(folder=folder, loaded=loaded, scratch=Path(scratch), clock=time.time)
        watch = Watch(
            view=view, feed=feed, monotonic=time.monotonic, sleep=time.sleep, on_message=on_message
        )
        watch.turn()
        server = LiveServer(feed, partial(make_document, name=folder.name))
        with server.serving():
            on_url(server.url)
            watch.run()
