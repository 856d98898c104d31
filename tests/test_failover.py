"""A region that is full after an eviction costs steps, not the run: it goes on elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from runs import Project, json_of, make_project, wait_until

from infra.journal import Kind


def test_a_run_moves_to_another_region_and_keeps_every_bit(tmp_path: Path) -> None:
    """Evicted, refused for capacity, moved with the checkpoint that came home: the same adapter."""
    calm = make_project(tmp_path / "calm")
    rough = make_project(
        tmp_path / "rough", vm={"rehearse_evictions": [120], "regions": ["local-1", "local-2"]}
    )
    assert calm.qft("run").returncode == 0
    process = rough.start("run", "--json")
    try:
        wait_until(lambda: process.poll() is not None or rough.kinds().count(Kind.LAUNCHED) > 0)
        market(rough, {"local-1": {"capacity": False}, "local-2": {}})
        out, err = process.communicate(timeout=600)

        assert process.returncode == 0, err
        receipt = json.loads(out)
        assert (receipt["evictions"], receipt["exact"]) == (1, True)
        regions = [
            event.data["offer"]["region"]
            for event in rough.events()
            if event.kind is Kind.CREATE_INTENDED
        ]
        assert (regions[0], regions[-1]) == ("local-1", "local-2")
        assert Kind.START_FAILED in rough.kinds()
        assert calm.tensors() == rough.tensors()
        assert calm.losses() == rough.losses()
        assert json_of(rough.qft("ls", "--all", "--json")) == []
    finally:
        process.kill()
        process.communicate()
        rough.tidy()


def market(project: Project, regions: dict[str, dict[str, object]]) -> None:
    """Change the spot market that this project's machines are rented in."""
    path = project.home / "local" / "market.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"version": 1, "regions": regions}))
    fresh.replace(path)
