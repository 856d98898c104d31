"""The seam to whatever shows the metrics of a training while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

CURVES = ("loss", "lr", "grad_norm", "tokens", "validation_loss")


class Tracker(Protocol):
    """Shows numbers by step; no method raises, for no curve is worth a training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step; of two calls for one step and name the later one counts."""

    def close(self) -> None:
        """Show what is left, and let everything go."""


class NoTracker:
    """Shows nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing is left."""


def make_tracker(
    run_dir: Path,
    *,
    steps_done: int,
    wall_s: Callable[[], float],
    on_message: Callable[[str], None],
) -> Tracker:
    """Return the tracker of a start that goes on after `steps_done`: TensorBoard, if it is there.

    Another one, such as of a web service, is a file beside this one and a line here.
    """
    try:
        from trainer.tracking.tensorboard import TensorBoard
    except Exception as error:  # noqa: BLE001 - a package that is none, or broken, raises anything
        on_message(f"no curves in tb/: {error}; metrics.jsonl has every step")
        return NoTracker()
    return TensorBoard(run_dir / "tb", steps_done=steps_done, wall_s=wall_s)


def curves(record: Mapping[str, Any]) -> dict[str, float]:
    """Return those values of a line of the metrics log that are shown as curves."""
    return {name: record[name] for name in CURVES if record.get(name) is not None}
