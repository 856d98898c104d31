"""Decides what a machine still needs before it can train: facts in, ordered steps out, no I/O.

A machine that is ready needs nothing: then the plan is empty. A plan ends where a reboot or a new
look at the facts is needed; `setup.apply` looks again and plans again until it is empty.
"""

from __future__ import annotations

from remote.setup.driver import driver_steps
from remote.setup.facts import Facts
from remote.setup.python_env import cuda_for, environment_steps, gpu_steps
from remote.setup.steps import (
    Driver,
    Step,
    Want,
    first_boot_steps,
    quiet_steps,
    repair_steps,
    require_root,
)


def plan(facts: Facts, want: Want) -> list[Step]:
    """List what must be done, in order; empty if the machine is ready.

    Raises `Unfit` with every reason at once if no command of ours can make it ready.
    """
    steps = first_boot_steps(facts, want)
    if steps:
        return steps
    if want.driver is not Driver.NONE:
        drivers = driver_steps(facts, want)
        if drivers:
            return require_root(facts, before_packages(facts, want) + drivers)
    steps += environment_steps(facts, want, cuda_for(facts, want))
    if want.driver is not Driver.NONE:
        steps += gpu_steps(facts, want)
    if any(step.sudo for step in steps):
        steps = before_packages(facts, want) + steps
    return require_root(facts, steps)


def before_packages(facts: Facts, want: Want) -> list[Step]:
    """What comes before packages are touched: nobody else at work, and nothing half done."""
    return quiet_steps(facts, want) + repair_steps(facts)
