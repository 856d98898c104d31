"""Runs programs one after another in a sandbox that was proved, also if one ends their parent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.code_eval.client import NotEntered, ParentEnded, ParentOfAnswers, parent_of_answers
from trainer.code_eval.limits import KILLED, Limits, Outcome
from trainer.code_eval.proof import MECHANISMS, proven_mechanism

STARTS_MAX = 20
"""Answers that end their parent cost an import each; so many in one scoring are no accident."""


@dataclass(kw_only=True)
class ProgramRunner:
    """Runs programs in the sandbox; `facts` are of the interpreter and of what holds."""

    parent: ParentOfAnswers
    mechanism: str
    python: str
    libraries: Sequence[str]
    stack: contextlib.ExitStack = field(repr=False)
    starts: int = 1

    @property
    def facts(self) -> Mapping[str, Any]:
        """The interpreter, the versions of its libraries, and what holds the answers."""
        names = ("python", "versions", "missing", "sandbox")
        return {name: self.parent.facts[name] for name in names if name in self.parent.facts}

    def run(self, program: str, limits: Limits) -> Outcome:
        """Run one program and return its outcome; one that ends its parent was killed.

        Raises:
            OSError: the sandbox could not be made this time.
            ConfigError: the parent cannot be started again.
        """
        try:
            return self.parent.run(program, mechanism=self.mechanism, limits=limits)
        except NotEntered as error:
            raise OSError(f"an answer could not be run: {error}") from error
        except ParentEnded:
            self.starts += 1
            if self.starts > STARTS_MAX:
                raise OSError("the parent of the answers ended again and again") from None
            self.parent = self.stack.enter_context(parent_of_answers(self.python, self.libraries))
            return Outcome(verdict=KILLED, error="parent", message="ended the process that ran it")


@contextlib.contextmanager
def proven_runner(
    python: str,
    libraries: Sequence[str],
    *,
    ours: Sequence[Path] = (),
    mechanisms: Sequence[str] = MECHANISMS,
) -> Iterator[ProgramRunner]:
    """Yield a runner whose sandbox has just held against every attack; `ours` must stay unread.

    Raises:
        NoSandbox: no sandbox holds here; nothing was run but the attacks.
        ConfigError: this system has none, or the interpreter cannot be used.
    """
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(parent_of_answers(python, libraries))
        mechanism = proven_mechanism(parent, ours, mechanisms=mechanisms)
        yield ProgramRunner(
            parent=parent, mechanism=mechanism, python=python, libraries=libraries, stack=stack
        )
