"""`qft doctor`: checks this computer, the account and the host before money is spent."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from commands.runs import factory
from commands.runs.checks import Check, exit_code
from commands.runs.config import LoadedConfig, check_data_and_model
from commands.runs.extras import REHEARSES, missing, needed_here, remedy
from commands.runs.find_config import find_config
from commands.runs.home import environment, qft_home, require_utf8_home, run_folder
from commands.runs.hub_base import inspect_base, require_token
from commands.runs.ssh_host_checks import check_host
from commands.ui.errors import QftError, UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json
from infra import registry
from infra.config import VmTable

PYTHON_MIN = (3, 11)
ROOMS = ("cli", "commands", "infra", "remote", "trainer")

EXAMPLES = {
    "qft doctor": "this computer, and what the run.yaml here needs",
    "qft doctor --provider azure": "whether this account could rent, before any run.yaml",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    provider: Annotated[
        str,
        typer.Option(
            metavar="local|azure|aws|ssh",
            help="Whether this one would work.",
            show_default="the run.yaml's, or local",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check this computer, account and host; say the fixes."""
    checks = examine(run, provider)
    if as_json:
        print_json([check.to_json() for check in checks])
    else:
        print_data("\n".join(check.line for check in checks))
    if code := exit_code(checks):
        raise typer.Exit(code)


def examine(wanted: str, provider: str = "") -> list[Check]:
    """Check this computer, and what the provider needs: the one named, or the config's.

    Raises:
        UsageError: there is no such provider, or `ssh` was named and nothing says which machine.
    """
    if provider not in {"", *registry.NAMES}:
        *most, last = [f"`{name}`" for name in registry.NAMES]
        hint = f"it is {', '.join(most)} or {last}"
        raise UsageError(f"`--provider {provider}` is none", hint=hint)
    checks = [_python(), _rooms(), _home()]
    loaded: LoadedConfig | None = None
    if wanted or Path("run.yaml").exists():
        try:
            loaded = find_config(wanted, qft_home(environment()))
            check_data_and_model(loaded)
            checks.append(Check(name="config", ok=True, detail=str(loaded.path)))
            checks += _base(loaded)
        except QftError as trouble:
            detail = "; ".join([trouble.message, *trouble.problems])
            checks.append(Check(name="config", ok=False, detail=detail, fix=trouble.hint))
    vm = _table(loaded.config.vm if loaded else VmTable(), provider)
    if vm.provider == "local":
        checks += _playable()
        checks += _packages(loaded)
    if vm.provider == "ssh":
        checks += check_host(vm, run_folder(qft_home(environment()), "doctor"))
    return checks + _accounts(vm)


def _base(loaded: LoadedConfig) -> list[Check]:
    """Check that the hub gives this user the base; no check if it is a directory."""
    unanswered: list[str] = []
    try:
        answer = inspect_base(loaded, unanswered.append)
        require_token(loaded, unanswered.append)
    except UsageError as trouble:
        detail = "; ".join(trouble.problems or [trouble.message])
        return [Check(name="base", ok=False, detail=detail, fix=trouble.hint)]
    found = [Check(name="base", ok=False, detail=line, required=False) for line in unanswered]
    if answer is not None:
        detail = answer.line.removeprefix("base: ")
        found.insert(0, Check(name="base", ok=True, detail=detail))
    return found


def _table(vm: VmTable, provider: str) -> VmTable:
    """Return the table as it is, or a bare one of another provider for the same card."""
    if not provider or vm.providers == (provider,):
        return vm
    if provider in vm.providers:
        return vm.at(provider)
    if provider == "ssh":
        raise UsageError(
            "nothing says which machine `--provider ssh` is",
            hint="put `vm: {provider: ssh, ssh: {host: …, user: …, key: …}}` into a run.yaml",
        )
    # Without the check, which asks for a price cap: nothing is rented.
    return VmTable.model_construct(provider=provider, gpu=vm.gpu or VmTable().gpu, gpus=vm.gpus)


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check(
        name="python",
        ok=sys.version_info[:2] >= PYTHON_MIN,
        detail=version,
        fix="install Python 3.11 or later",
    )


def _rooms() -> Check:
    """Check that our packages are imported, and not another project's of the same names."""
    places = {}
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        places[room] = Path(spec.origin).resolve() if spec and spec.origin else None
    roots = {
        path.parent if room == "cli" else path.parent.parent
        for room, path in places.items()
        if path is not None
    }
    missing = [room for room, path in places.items() if path is None]
    ok = len(roots) == 1 and not missing
    detail = f"{', '.join(ROOMS)} in {roots.pop()}" if ok else f"{places}"
    return Check(
        name="rooms",
        ok=ok,
        detail=detail,
        fix="another package of that name comes first: install qft into an environment of its own",
    )


def _home() -> Check:
    home = qft_home(environment())
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".doctor"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return Check(
            name="home", ok=False, detail=str(error), fix="set QFT_HOME to a folder of yours"
        )
    return Check(name="home", ok=True, detail=str(home))


def _playable() -> list[Check]:
    """Check that machines can be simulated in `$QFT_HOME`; no check if they can."""
    try:
        require_utf8_home(qft_home(environment()))
    except UsageError as error:
        return [Check(name="machines here", ok=False, detail=error.message, fix=error.hint)]
    return []


def _packages(loaded: LoadedConfig | None) -> list[Check]:
    """Check each package that a training here imports: installed, new enough, and loadable."""
    wanted = needed_here(loaded.config) if loaded else ()
    names = wanted or REHEARSES
    lacks = {lack.package: lack for lack in missing(names, qft_home(environment()))}
    return [
        Check(
            name=name,
            ok=name not in lacks,
            detail=f"{lacks[name].problem}; `provider: local` needs it here"
            if name in lacks
            else "installed",
            fix=remedy([lacks[name]]).strip("`") if name in lacks else "",
        )
        for name in names
    ]


def _accounts(vm: VmTable) -> list[Check]:
    """What the accounts lack, each with the command or link that mends it.

    Of several providers, one that is in order is enough for a run: what the others lack is then a
    limit, and no failure.
    """
    found = {name: _account(vm.at(name), name) for name in vm.providers}
    if len(found) == 1:
        return [check for checks in found.values() for check in checks]
    enough = not all(any(check.failed for check in checks) for checks in found.values())
    return [
        replace(check, name=f"{name}: {check.name}", required=check.required and not enough)
        for name, checks in found.items()
        for check in checks
    ]


def _account(vm: VmTable, name: str) -> list[Check]:
    """What the account at one provider lacks."""
    state_dir = qft_home(environment()) / name
    try:
        found = registry.registration(name).checks(vm, factory.want(vm), state_dir, environment())
    except ValueError as error:
        raise UsageError(str(error)) from error
    return [Check(**asdict(one)) for one in found]
