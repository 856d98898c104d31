"""Plays the Fault Injection Service as far as it interrupts spot machines, by experiments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ec2 import iam
from ec2.replies import ApiCall, AwsError
from ec2.spot_lifecycle import EXPERIMENT, interrupt
from ec2.state import ACCOUNT
from ec2.world import World

KEY = "fis"
SERVICE = "fis.amazonaws.com"
ACTION = "aws:ec2:send-spot-instance-interruptions"
RIGHT = "SendSpotInstanceInterruptions"
TARGET_TYPE = "aws:ec2:spot-instance"
NOTICE_S = 120.0
DURATION = re.compile(r"PT([2-9]|1[0-5])M")
START_S = 10.0
"""From StartExperiment to the first act."""
TERMINAL = frozenset({"completed", "failed", "stopped"})


@dataclass(kw_only=True)
class Experiments:
    """Templates and experiments by id."""

    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[tuple[str, str], str] = field(default_factory=dict)
    """The id that each (operation, client token) made: two operations may share a token."""


def fis(world: World) -> Experiments:
    """What the service holds."""
    found: Experiments = world.data.setdefault(KEY, Experiments())
    return found


def create_experiment_template(world: World, call: ApiCall) -> dict[str, Any]:
    """CreateExperimentTemplate; of actions, only the interruption of spot machines is played."""
    here, body = fis(world), call.parameters
    token = (call.operation, body["clientToken"])
    if token in here.tokens:
        return {"experimentTemplate": here.templates[here.tokens[token]]}
    for name, action in body["actions"].items():
        duration = action.get("parameters", {}).get("durationBeforeInterruption", "")
        target = body.get("targets", {}).get(action.get("targets", {}).get("SpotInstances", ""))
        if action["actionId"] != ACTION or not DURATION.fullmatch(duration):
            raise _invalid(f"The action {name} is invalid.")
        if target is None or target["resourceType"] != TARGET_TYPE:
            raise _invalid(f"The action {name} needs a target of the type {TARGET_TYPE}.")
    iam.check_pass_role(world, call, body["roleArn"], "fis.amazonaws.com")
    id_ = world.new_id("EXT").replace("-0", "")
    made = {key: value for key, value in body.items() if key != "clientToken"}
    made["targets"] = {
        name: {key: value for key, value in one.items() if key != "parameters"}
        for name, one in body.get("targets", {}).items()
    }
    arn = f"arn:aws:fis:{call.region}:{ACCOUNT}:experiment-template/{id_}"
    here.templates[id_] = {**made, "id": id_, "arn": arn, "creationTime": world.moment()}
    here.tokens[token] = id_
    return {"experimentTemplate": here.templates[id_]}


def delete_experiment_template(world: World, call: ApiCall) -> dict[str, Any]:
    """DeleteExperimentTemplate."""
    here = fis(world)
    gone = here.templates.pop(_template(world, call, "id")["id"])
    here.tokens = {key: id_ for key, id_ in here.tokens.items() if id_ != gone["id"]}
    return {"experimentTemplate": gone}


def get_experiment_template(world: World, call: ApiCall) -> dict[str, Any]:
    """GetExperimentTemplate."""
    return {"experimentTemplate": _template(world, call, "id")}


def list_experiment_templates(world: World, call: ApiCall) -> dict[str, Any]:
    """ListExperimentTemplates."""
    del call
    keys = ("id", "arn", "description", "creationTime", "tags")
    rows = [{key: one[key] for key in keys if key in one} for one in fis(world).templates.values()]
    return {"experimentTemplates": rows}


def start_experiment(world: World, call: ApiCall) -> dict[str, Any]:
    """StartExperiment: acts a little later, with the role's rights."""
    here = fis(world)
    token = (call.operation, call.parameters["clientToken"])
    if token in here.tokens:
        return {"experiment": here.experiments[here.tokens[token]]}
    template = _template(world, call, "experimentTemplateId")
    id_ = world.new_id("EXP").replace("-0", "")
    made = {
        "id": id_,
        "arn": f"arn:aws:fis:{call.region}:{ACCOUNT}:experiment/{id_}",
        "experimentTemplateId": template["id"],
        "roleArn": template["roleArn"],
        "state": {"status": "initiating", "reason": "Experiment is initiating."},
        "creationTime": world.moment(),
    }
    here.experiments[id_] = made
    here.tokens[token] = id_
    world.after(START_S, lambda: _act(world, call.region, template, made))
    return {"experiment": made}


def get_experiment(world: World, call: ApiCall) -> dict[str, Any]:
    """GetExperiment."""
    found = fis(world).experiments.get(call.parameters["id"])
    if found is None:
        message = f"Experiment {call.parameters['id']} not found"
        raise AwsError("ResourceNotFoundException", message, status=404)
    return {"experiment": found}


OPERATIONS = {
    "CreateExperimentTemplate": create_experiment_template,
    "DeleteExperimentTemplate": delete_experiment_template,
    "GetExperiment": get_experiment,
    "GetExperimentTemplate": get_experiment_template,
    "ListExperimentTemplates": list_experiment_templates,
    "StartExperiment": start_experiment,
}


def _act(world: World, region: str, template: dict[str, Any], made: dict[str, Any]) -> None:
    """Recommend to rebalance, then announce and interrupt, if the role may."""
    role = template["roleArn"]
    if not iam.can_assume(world, role, SERVICE, source_arn=made["arn"]):
        made["state"] = {"status": "failed", "reason": "Unable to assume role."}
        return
    for action in template["actions"].values():
        target = template["targets"][action["targets"]["SpotInstances"]]
        ids = [arn.rpartition("/")[2] for arn in target.get("resourceArns", [])]
        found = [world.instances[id_] for id_ in ids if id_ in world.instances]
        running = [one for one in found if one.state == "running" and one.request_id]
        if not running:
            made["state"] = {"status": "failed", "reason": "Target resolution returned empty set."}
            return
        call = ApiCall(
            service="ec2",
            region=region,
            operation=RIGHT,
            parameters={"InstanceIds": [one.id for one in running]},
            caller=role,
        )
        if not world.permissions[role](call):
            reason = f"{role} is not authorized to perform: ec2:{RIGHT}"
            made["state"] = {"status": "failed", "reason": reason}
            return
        minutes = DURATION.fullmatch(action["parameters"]["durationBeforeInterruption"])
        assert minutes is not None
        for one in running:
            one.rebalance_s = world.now()

        def announce(running: list[Any] = running) -> None:
            for one in running:
                interrupt(world, one, kind=EXPERIMENT, notice_s=NOTICE_S)

        world.after(int(minutes[1]) * 60.0 - NOTICE_S, announce)
    made["state"] = {"status": "completed", "reason": "Experiment completed."}
    made["startTime"] = made["endTime"] = world.moment()


def _template(world: World, call: ApiCall, key: str) -> dict[str, Any]:
    found = fis(world).templates.get(call.parameters[key])
    if found is None:
        message = f"Experiment template {call.parameters[key]} not found"
        raise AwsError("ResourceNotFoundException", message, status=404)
    return found


def _invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message)
