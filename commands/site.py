"""Where the things of one run lie on a machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where things lie on the machine, relative to the home of its user."""

    run_id: str

    @property
    def base(self) -> str:
        """The one folder that the run uses there."""
        return f"qft/{self.run_id}"

    @property
    def run_dir(self) -> str:
        """The trainer's run directory."""
        return f"{self.base}/run"

    @property
    def code(self) -> str:
        """Where the shipped trainer lies; the trainer's working directory."""
        return f"{self.base}/code"

    @property
    def job(self) -> str:
        """The record and the log of the detached job."""
        return f"{self.base}/job"
