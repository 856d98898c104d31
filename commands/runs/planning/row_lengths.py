"""Says how long the rows of a run are, from the files that lie here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from commands.runs.config import LoadedConfig
from trainer.data.rows import Row, stream_rows
from trainer.data.template import MissingFieldError, Template, TemplateError
from trainer.errors import DataError

BYTES_PER_TOKEN = 4
"""Of English prose, with the tokenizers of today's models; code and other scripts take fewer."""
ROWS_LOOKED_AT = 500


def usual_tokens(loaded: LoadedConfig) -> int | None:
    """About how many tokens a row has, by the bytes of the first ones; None if that is unknown.

    Only time is foretold from it: memory depends on the longest row, which may be any.
    """
    files = [path for key, path in loaded.data_files.items() if key != "eval"]
    if not files:  # on a hub
        return None
    each = -(-ROWS_LOOKED_AT // len(files))
    try:
        rows = [row for file in files for row in islice(stream_rows(file, []), each)]
        total = sum(len(text.encode()) for text in _row_texts(loaded, rows))
    except (DataError, MissingFieldError, TemplateError):  # `check_data_and_model` tells of it
        return None
    usual = round(total / max(1, len(rows)) / BYTES_PER_TOKEN)
    return max(1, min(loaded.config.train.max_length, usual))


def _row_texts(loaded: LoadedConfig, rows: Sequence[Row]) -> list[str]:
    table = loaded.config.data
    fields = [row.fields for row in rows]
    if table.messages is not None:
        field = Template.parse("{" + table.messages + "}")
        talks = [field.value(one) for one in fields]
        return [
            "".join(str(turn.get("content") or "") for turn in turns if isinstance(turn, Mapping))
            if isinstance(turns, list)
            else ""
            for turns in talks
        ]
    if table.text is not None:
        return [Template.parse("{" + table.text + "}").render(one) for one in fields]
    texts = (table.prompt, table.completion)
    templates = [Template.parse(text).for_rows(fields) for text in texts]
    return ["".join(template.render(one) for template in templates) for one in fields]
