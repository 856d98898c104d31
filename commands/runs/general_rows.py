"""Checks the user's general rows or text (`eval.general`) before anything is rented."""

from __future__ import annotations

from pathlib import Path

from trainer.data_table import DataTable

KEY = "eval.general"


def general_faults(path: Path | None, data: DataTable) -> list[str]:
    """Return what is wrong with the file, so far as it shows without a tokenizer.

    None for one that the machine fetches from a hub, or that nobody named.
    """
    from trainer.data.rows import read_rows
    from trainer.errors import DataError
    from trainer.scoring.forgetting.general import columns_problem, is_text, read_text, table_for

    if path is None:
        return []
    if path.exists() and not path.is_file():  # to open a pipe would wait
        return [f"{KEY}: {path}: is no file"]
    try:
        if is_text(path):
            read_text(path)
            return []
        fields = read_rows(path)[0].fields
    except DataError as error:
        return [f"{KEY}: {problem}" for problem in error.problems]
    if table_for(data, fields) is None:
        return [f"{KEY}: {path}: {columns_problem(data, fields)}"]
    return []
