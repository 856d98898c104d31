"""Chooses when to save: often enough to lose little to an eviction, seldom enough to be cheap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config import CheckpointTable, EvictionBand

INTERVAL_S_MIN = 300.0
INTERVAL_S_MAX = 1200.0

# The upper end of each band, as a share of machines evicted within an hour; the open band has no
# end, so the middle of a plausible one is taken. An unknown band is treated as the worst.
EVICTED_PER_H = {
    EvictionBand.UP_TO_5: 0.05,
    EvictionBand.UP_TO_10: 0.10,
    EvictionBand.UP_TO_15: 0.15,
    EvictionBand.UP_TO_20: 0.20,
    EvictionBand.OVER_20: 0.25,
}


@dataclass(frozen=True, kw_only=True)
class SaveInterval:
    """Save every so many seconds, or every so many steps, and why."""

    interval_s: float | None
    interval_steps: int | None
    reason: str

    def due(self, *, steps_since: int, seconds_since: float) -> bool:
        """Tell whether a save is due, so long after the one before."""
        if self.interval_steps is not None:
            return steps_since >= self.interval_steps
        return self.interval_s is not None and steps_since > 0 and seconds_since >= self.interval_s


def choose_interval(
    table: CheckpointTable, *, band: EvictionBand | None, save_s: float | None
) -> SaveInterval:
    """Return the interval of the config; `auto` is computed from the measured time of a save.

    The interval sqrt(2 * C * M) balances the cost C of a save against the expected loss with a
    mean time M between evictions (J. W. Young, CACM 17, 1974; J. T. Daly, FGCS 22, 2006). With a
    share p evicted per hour, M = -1 h / ln(1 - p).
    """
    if isinstance(table.every, int):
        return SaveInterval(
            interval_s=None, interval_steps=table.every, reason=f"every {table.every} steps"
        )
    if table.every_s is not None:
        return SaveInterval(
            interval_s=table.every_s, interval_steps=None, reason=f"every {table.every}"
        )
    if save_s is None:
        return SaveInterval(
            interval_s=INTERVAL_S_MIN,
            interval_steps=None,
            reason=f"auto: {INTERVAL_S_MIN / 60:.0f} min until the first save has been timed",
        )
    chosen_band = band or table.eviction_band
    share = EVICTED_PER_H[chosen_band or EvictionBand.OVER_20]
    between_s = -3600.0 / math.log1p(-share)
    best_s = math.sqrt(2.0 * save_s * between_s)
    interval_s = min(max(best_s, INTERVAL_S_MIN), INTERVAL_S_MAX)
    band_text = f"band {chosen_band} %/h" if chosen_band else "band unknown, taken as 20+ %/h"
    return SaveInterval(
        interval_s=interval_s,
        interval_steps=None,
        reason=(
            f"auto: every {interval_s / 60:.1f} min (a save takes {save_s:.2f} s, {band_text}: "
            f"an eviction every {between_s / 3600:.1f} h, best {best_s / 60:.1f} min, "
            f"kept within {INTERVAL_S_MIN / 60:.0f}-{INTERVAL_S_MAX / 60:.0f})"
        ),
    )
