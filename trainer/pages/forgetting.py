"""Shows what a model forgot: general questions, the distance from its base, the user's rows."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.run_files import read
from trainer.scoring.forgetting.summary import forgetting_notes, forgetting_rows, measured_of

HEAD = ("", "before", "after", "change")
NO_FAULT = (
    "A model that learns moves away from its base; by itself that is no fault. It matters where "
    "answers beside the task are wanted."
)


def forgetting_parts(run_dir: Path) -> list[Markup]:
    """Return the parts of the section on forgetting; none for a run that did not measure it."""
    before, after = (
        measured_of(read(run_dir / f"eval-{stage}.json")) for stage in ("before", "after")
    )
    rows = forgetting_rows(before, after)
    if not rows:
        return []
    notes = [*forgetting_notes(before, after), NO_FAULT]
    return [html.table(HEAD, rows), *(html.paragraph(note) for note in notes)]
