"""What is said about an own machine: no price, no rent, no card that nobody looked for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml
from support.runs import json_of, make_project
from support.sshd import serve

from commands.ui.snapshot import RunSnapshot
from infra.config import VmTable

RENTED = re.compile(r"\$|yours in yours|0 GB|renting|bill|\bspot\b|price")


def test_no_price_rent_or_card_is_printed_that_is_unknown(tmp_path: Path) -> None:
    """`plan`, `up`, `status`, `run`'s lines and `down` speak of a machine that is there already."""
    with serve(tmp_path / "server") as server:
        ssh = {
            "host": "127.0.0.1",
            "port": server.port,
            "user": server.user,
            "key": str(server.client_key),
            "host_key": server.host_key,
            "gpu": False,
            "python": sys.executable,
        }
        vm = VmTable.model_validate({"provider": "ssh", "ssh": ssh}).model_dump(
            mode="json", exclude_unset=True
        )
        project = make_project(tmp_path / "project")
        config = yaml.safe_load(project.config.read_text()) | {"vm": vm}  # no `gpu` is named
        project.config.write_text(yaml.safe_dump(config))
        where = f"{server.user}@127.0.0.1:{server.port}"

        plan, up = project.qft("plan"), project.qft("up")
        status, listed = project.qft("status"), project.qft("ls", "--all", "--json")
        down = project.qft("down")

    for done in (plan, up, status, down):
        assert done.returncode == 0, done.stderr
    assert f"on your own machine {where}" in plan.stdout
    assert "memory" not in plan.stdout
    assert "taking your machine into use" in up.stderr
    assert "nothing: your own machine" in up.stdout
    assert f"your own, {where}, running" in status.stdout
    assert json_of(listed)[0]["bills_compute"] is False
    for printed in (plan.stdout, plan.stderr, up.stdout, up.stderr, status.stdout, status.stderr):
        assert RENTED.search(printed) is None, printed
    lines = up.stderr.strip().splitlines()
    assert [line for line in lines if not re.match(r"\d\d:\d\d:\d\d \w", line)] == []


def test_a_moment_on_an_own_machine_has_no_money_in_it() -> None:
    """The line of a rented machine ends with money; that of an own one with what it does."""
    facts = {
        "phase": "training",
        "step": 1,
        "steps": 2,
        "loss": None,
        "tokens_per_s": None,
        "eta_s": None,
        "place": "",
        "price_usd_per_h": 0.0,
        "spent_usd": 0.0,
        "simulated": False,
        "evictions": 0,
        "home_step": 0,
        "note": "",
    }

    assert RunSnapshot(**facts, own=True).line == "training · step 1/2"  # type: ignore[arg-type]
    assert RunSnapshot(**facts).line.endswith("$0.000/h, $0.0000 so far")  # type: ignore[arg-type]
