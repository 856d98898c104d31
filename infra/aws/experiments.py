"""Rehearses an interruption by AWS Fault Injection Service, which sends a real notice.

There is no call that evicts for free: an experiment needs a role that may send interruptions. What
an experiment stops stays stopped until somebody starts it.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.naming import MachineId
from infra.errors import BadRequest, Gone, NotAllowed, ProviderError, SignedOut, Transient
from infra.renting.tags import RUN
from infra.untrusted import table, text

ROLE = "qft-fis"
"""The name of the role by which Fault Injection Service interrupts machines."""
ACTION = "aws:ec2:send-spot-instance-interruptions"
RIGHT = "ec2:SendSpotInstanceInterruptions"
NOTICE = "PT2M"
"""How long before the interruption its notice comes; two minutes is the shortest."""
RECIPE = (
    f"an administrator makes the role once: `aws iam create-role --role-name {ROLE}"
    ' --assume-role-policy-document \'{"Version":"2012-10-17","Statement":[{"Effect":"Allow",'
    '"Principal":{"Service":"fis.amazonaws.com"},"Action":"sts:AssumeRole"}]}\'`, then `aws iam'
    f" put-role-policy --role-name {ROLE} --policy-name interrupt --policy-document"
    ' \'{"Version":"2012-10-17","Statement":[{"Effect":"Allow",'
    f'"Action":"{RIGHT}","Resource":"arn:aws:ec2:*:*:instance/*",'
    '"Condition":{"Null":{"aws:ResourceTag/qft-run":"false"}}}]}\'`; your own rights must include'
    f" `fis:*` and `iam:PassRole` on `{ROLE}`"
)
"""The two commands that make the role, and what else it takes."""


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """Experiments of one account, each with one machine."""

    context: AwsContext

    def interrupt(self, machine: MachineId, *, run_id: str) -> None:
        """Order an interruption of a running machine, its notice first; returns when it began.

        Waits `accept_wait_s` at most for the experiment to begin or to fail. Raises `NotAllowed`
        with the recipe where a role or a right is missing.
        """
        seed = f"{machine}/{self.context.clock():.0f}"
        token = hashlib.sha256(seed.encode()).hexdigest()[:32]
        try:
            template = self._template(machine, run_id, token)
            try:
                self._start(machine, template, run_id, token)
            finally:
                self._remove_template(machine, template)
        except SignedOut:
            raise
        except (NotAllowed, BadRequest, Gone) as error:
            raise NotAllowed(
                f"cannot rehearse an interruption of `{machine.instance}`: {error}", hint=RECIPE
            ) from error

    def _template(self, machine: MachineId, run_id: str, token: str) -> str:
        arn = f"arn:aws:ec2:{machine.region}:{machine.account}:instance/{machine.instance}"
        answer = self.context.clients.call(
            "fis",
            machine.region,
            "create_experiment_template",
            doing="describe the interruption to Fault Injection Service",
            clientToken=f"{token}-template",
            description=f"interruption of {machine.instance} that qft rehearses",
            roleArn=f"arn:aws:iam::{machine.account}:role/{ROLE}",
            stopConditions=[{"source": "none"}],
            targets={
                "machine": {
                    "resourceType": "aws:ec2:spot-instance",
                    "resourceArns": [arn],
                    "selectionMode": "ALL",
                }
            },
            actions={
                "interrupt": {
                    "actionId": ACTION,
                    "parameters": {"durationBeforeInterruption": NOTICE},
                    "targets": {"SpotInstances": "machine"},
                }
            },
            tags={RUN: run_id},
        )
        return text(table(answer.get("experimentTemplate")).get("id")) or ""

    def _start(self, machine: MachineId, template: str, run_id: str, token: str) -> None:
        answer = self.context.clients.call(
            "fis",
            machine.region,
            "start_experiment",
            doing="begin the interruption",
            clientToken=f"{token}-start",
            experimentTemplateId=template,
            tags={RUN: run_id},
        )
        experiment = table(answer.get("experiment"))
        deadline_s = self.context.clock() + self.context.settings.accept_wait_s
        while True:
            state = table(experiment.get("state"))
            status, reason = text(state.get("status")) or "", text(state.get("reason")) or ""
            if status in {"running", "completed"}:
                return
            if status in {"failed", "stopped", "stopping", "cancelled"}:
                raise NotAllowed(f"the experiment {status}: {reason}")
            if self.context.clock() >= deadline_s:
                raise Transient(f"the experiment has not begun ({status})")
            self.context.sleep(self.context.settings.polling_s)
            experiment = table(
                self.context.clients.call(
                    "fis",
                    machine.region,
                    "get_experiment",
                    doing="look at the interruption",
                    id=text(experiment.get("id")) or "",
                ).get("experiment")
            )

    def _remove_template(self, machine: MachineId, template: str) -> None:
        """Remove the template, which an experiment that began does not need; it costs nothing."""
        with contextlib.suppress(ProviderError):  # an interruption was ordered all the same
            self.context.clients.call(
                "fis",
                machine.region,
                "delete_experiment_template",
                doing="remove the template of the interruption",
                id=template,
            )
