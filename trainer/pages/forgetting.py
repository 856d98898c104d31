"""Shows what a model forgot: general questions, the distance from its base, the user's rows."""

from __future__ import annotations

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.run_files import Json
from trainer.scoring.forgetting.summary import forgetting_notes, forgetting_rows, measured_of

HEAD = ("", "before", "after", "change")
NOT_AN_ERROR = (
    "A model that learns moves away from its base; by itself that is no fault. It matters where "
    "answers beside the task are wanted."
)


def forgetting_parts(before: Json | None, after: Json | None) -> list[Markup]:
    """Return the parts of the section on forgetting, of two scores; none if it was not measured."""
    both = measured_of(before), measured_of(after)
    rows = forgetting_rows(*both)
    if not rows:
        return []
    notes = [*forgetting_notes(*both), NOT_AN_ERROR]
    return [html.table(HEAD, rows), *(html.paragraph(note) for note in notes)]
