"""Runs one function in a thread beside the caller, and hands back its result or its error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """A function that runs in a thread from now on; the thread does not keep the program alive."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._results: list[Result] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001  (raised again by `result`)
            self._errors.append(error)

    def result(self) -> Result:
        """Wait for the function to end; return what it returned, or raise what it raised.

        Several threads may ask, each as often as it likes.
        """
        self._thread.join()
        if self._errors:
            raise self._errors[0]
        return self._results[0]
