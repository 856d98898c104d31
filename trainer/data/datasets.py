"""Loads the data sets of `data.train`, each with its weight, as one row of examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from trainer.data.codec import Example
from trainer.data.examples import DataReport, Examples
from trainer.data_table import DataTable
from trainer.errors import DataError
from trainer.schedule import Share


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The examples of all data sets, one set after another, and how often each stands in an epoch.

    The number of an example's row is that in its own file.
    """

    sets: tuple[Examples, ...]
    weights: tuple[float, ...]

    @cached_property
    def items(self) -> tuple[Example, ...]:
        """All examples, in the order of the sets and of their files."""
        if len(self.sets) == 1:
            return self.sets[0].items
        return tuple(item for one in self.sets for item in one.items)

    @cached_property
    def report(self) -> DataReport:
        """The counts of all sets together; which rows were cut or left out, each set's own says."""
        reports = [one.report for one in self.sets]
        if len(reports) == 1:
            return reports[0]
        return DataReport(
            path=", ".join(one.path for one in reports),
            rows=sum(one.rows for one in reports),
            examples=sum(one.examples for one in reports),
            truncated=sum(one.truncated for one in reports),
            truncated_rows=(),
            tokens=sum(one.tokens for one in reports),
            supervised_tokens=sum(one.supervised_tokens for one in reports),
            longest=max(one.longest for one in reports),
            dropped=sum(one.dropped for one in reports),
            warnings=tuple(f"{one.path}: {word}" for one in reports for word in one.warnings),
        )

    @property
    def shares(self) -> tuple[Share, ...]:
        """What the schedule needs to know of the sets."""
        return tuple(
            Share(rows=len(one.items), weight=weight)
            for one, weight in zip(self.sets, self.weights, strict=True)
        )


def load_training_rows(table: DataTable, load: Callable[[str], Examples]) -> TrainingRows:
    """Load every data set of `data.train` with `load`, which is given its name in the config.

    Raises:
        DataError: with every problem of every file at once.
    """
    sets: list[Examples] = []
    problems: list[str] = []
    for one in table.train_sets:
        try:
            sets.append(load(one.path))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return TrainingRows(sets=tuple(sets), weights=tuple(one.weight for one in table.train_sets))
