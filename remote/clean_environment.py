"""Unsets the environment variables of a login that would change what our programs there import.

A login's start-up files may name another project's packages (`PYTHONPATH`), its environment
(`VIRTUAL_ENV`), its pip settings or its launcher. None of these reach the trainer or pip. All else
passes: the path, proxies, certificates, the language, `CUDA_VISIBLE_DEVICES`, `LD_LIBRARY_PATH`
(some machines find their driver by it), and what the hub's library reads (`HF_HOME`, `HF_TOKEN`).
"""

from __future__ import annotations

from collections.abc import Sequence

PREFIXES = ("PYTHON", "PIP_", "PIPENV_", "VIRTUAL_ENV", "CONDA_", "_CE_", "UV_", "POETRY_")
"""Prefixes of variables that are unset: of Python, its environments and their managers."""
LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_")
NAMES = (
    *("LD_PRELOAD", "LD_AUDIT", "BASH_ENV", "ENV"),
    # Of a launcher of many processes: the trainer is one, and would wait for the others.
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Other variables that are unset."""
CLEAR_VARIABLES = (
    "for qft_name in $(env | sed -nE 's/^(("
    + "|".join((*PREFIXES, *LAUNCHERS))
    + ")[A-Za-z0-9_]*|"
    + "|".join(NAMES)
    + ')=.*/\\1/p\'); do unset "$qft_name"; done; unset qft_name; '
)
"""A line for a POSIX shell that unsets all of these."""
PRIVATE_UMASK = "umask 077; "
"""Files that we make there are its user's alone: data, adapters and logs."""
MARK = "qft-clean"


def clean(argv: Sequence[str], *, ours: bool) -> list[str]:
    """Return a command that runs `argv` in a clean environment, whatever the login's files set.

    `ours` means that the interpreter is of an environment that we made: then packages in the user's
    home are not imported either. Python's output is unbuffered.
    """
    own = "export PYTHONUNBUFFERED=1" + " PYTHONNOUSERSITE=1" * ours
    return ["sh", "-c", f'{PRIVATE_UMASK}{CLEAR_VARIABLES}{own}; exec "$@"', MARK, *argv]


def strip_clean_environment(argv: Sequence[str]) -> list[str]:
    """Return the command inside one that `clean` returned; any other as it is."""
    if len(argv) > 4 and tuple(argv[:2]) == ("sh", "-c") and argv[3] == MARK:
        return list(argv[4:])
    return list(argv)
