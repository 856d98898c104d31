"""TensorBoard curves in `tb/`, one event file per start; redone steps replace the earlier ones.

Records and their framing are TensorBoard's own. Its `EventFileWriter` is not used: on a full disk
it stops the training, and what its thread has not written yet is lost with the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class TensorBoard:
    """Appends scalars that TensorBoard shows; what finds no room on the disk is not shown."""

    def __init__(self, directory: Path, *, steps_done: int, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._path = directory / f"events.out.tfevents.{int(wall_s())}.{os.getpid()}"
        with suppress(OSError):  # no room: nothing is shown
            directory.mkdir(parents=True, exist_ok=True)
        self._append(file_version="brain.Event:2")
        # TensorBoard forgets what an earlier process wrote of these steps.
        self._append(step=steps_done + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the points of one step to the curves."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(step=step, summary=Summary(value=points))

    def close(self) -> None:
        """Nothing is left: every record is in the file at once."""

    def _append(self, **fields: Any) -> None:
        event = Event(wall_time=self._wall_s(), **fields)
        with suppress(OSError), self._path.open("ab") as file:  # no room: it is not shown
            RecordWriter(file).write(event.SerializeToString())
