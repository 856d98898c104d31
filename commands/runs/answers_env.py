"""Decides whether a machine needs an environment of its own for answers that are code."""

from __future__ import annotations

from importlib.util import find_spec

from commands.runs.config import LoadedConfig
from trainer.code_eval.libraries import libraries_in
from trainer.data.rows import read_rows
from trainer.data.template import MissingFieldError, Template
from trainer.errors import DataError
from trainer.eval_tables.code import CodeEvalTable


def needs_answers_env(loaded: LoadedConfig) -> bool:
    """Tell whether set-up is to make one: answers are run, and no interpreter is named for them.

    With `provider: local` the Python that runs `qft` does as well if it has every library that the
    held-out rows' test programs name: trying things out here takes no download.
    """
    table = loaded.config.scored
    if not isinstance(table, CodeEvalTable) or table.python is not None:
        return False
    rows = loaded.data_files.get("eval")
    if loaded.config.vm.provider != "local" or rows is None:
        return True
    tests = Template.parse(f"{{{table.tests}}}")
    try:
        named = libraries_in(tests.render(row.fields) for row in read_rows(rows))
    except (DataError, MissingFieldError):
        return False  # the trainer names every row that is wrong
    return any(find_spec(name) is None for name in named)
