"""The day that chat templates see: that on which the run began, fixed before anything is computed.

`qft` writes it into the config that travels. A run directory that is trained without `qft` keeps it
in a file of its own, so that a resume on another day, and every later look, see the same day.
Checkpoints and the adapter's receipt name it too, for a copy of the run that lacks that file.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

from trainer.atomic import Disk, replace_file
from trainer.config import TrainerConfig, load_config
from trainer.errors import ConfigError
from trainer.rundir.layout import ADAPTER, CONFIG, DAY, RECEIPT, read_table
from trainer.saving.manifest import FINGERPRINT, directory_name, steps_present


def load_run_config(run_dir: Path) -> TrainerConfig:
    """Return the config of a run with the day on which it began, None if it has not begun.

    Raises:
        ConfigError: the config, or the record of the day, is none.
    """
    config = load_config(run_dir / CONFIG)
    return config if config.data.day is not None else with_day(config, recorded_day(run_dir))


def fix_day(
    run_dir: Path, config: TrainerConfig, *, today: date, disk: Disk
) -> TrainerConfig:  # fmt: skip
    """Return the config with the day of the run; `today` becomes that if none is known yet.

    Raises:
        ConfigError: the record of the day is none.
        OSError: it cannot be written.
    """
    if config.data.day is not None:
        return config
    day = recorded_day(run_dir)
    if day is None:
        day = today
        replace_file(run_dir / DAY, json.dumps({"day": day.isoformat()}) + "\n", disk=disk)
    return with_day(config, day)


def with_day(config: TrainerConfig, day: date | None) -> TrainerConfig:
    """Return the config with another day."""
    return config.model_copy(update={"data": config.data.model_copy(update={"day": day})})


def recorded_day(run_dir: Path) -> date | None:
    """Return the day that an earlier start fixed in a run directory, None if there was none.

    Raises:
        ConfigError: the record holds no day.
    """
    path = run_dir / DAY
    if path.exists():
        day = _day_in(path)
        if day is None:
            hint = 'it should read {"day": "2026-11-30"}, the day on which the run began'
            raise ConfigError([f"{path}: this holds no day; {hint}"])
        return day
    checkpoints = run_dir / "checkpoints"
    copies = [
        *(checkpoints / directory_name(at) / FINGERPRINT for at in steps_present(checkpoints)),
        run_dir / ADAPTER / RECEIPT,
    ]
    return next(filter(None, map(_day_in, copies)), None)


def _day_in(path: Path) -> date | None:
    """Return the day that a JSON table names; None if it names none, as those of earlier runs."""
    if not path.is_file():
        return None
    try:
        return date.fromisoformat(str(read_table(path).get("day")))
    except ValueError:
        return None
