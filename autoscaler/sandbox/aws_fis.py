"""AWS's Fault Injection Service, as far as it interrupts spot instances: templates, experiments, their targets.

`aws:ec2:send-spot-instance-interruptions` sends a rebalance recommendation at once and lets the reclaim begin, notice
first, so that it ends after `durationBeforeInterruption` (2 to 15 minutes). Source: AWS's FIS actions reference.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from autoscaler.sandbox.aws_access import Caller, tag_context
from autoscaler.sandbox.aws_json import Json, text
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_sts import role_arn

ACTION = "aws:ec2:send-spot-instance-interruptions"
TARGET = "aws:ec2:spot-instance"
_NOTICE_S = 120
_DURATION = re.compile(r"PT(\d+)M")
_SHORTEST_MIN, _LONGEST_MIN = 2, 15

Interrupt = Callable[[str, Sequence[str]], None]
"""Begins the reclaim of instances of a region, notice first."""
FindSpot = Callable[[str, Sequence[str]], list[str]]
"""Which of the instance ids of a region are running spot instances."""


@dataclass(slots=True, kw_only=True)
class Experiment:
    """One experiment; `body` is what it was made from."""

    id: str
    region: str
    body: Json
    tags: Mapping[str, str]
    started_at: float
    ends_at: float
    failure: str = ""
    is_looked_at: bool = False
    """Its start answers before anything was done; every later look finds it at work."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def status(self, now: float) -> tuple[str, str]:
        if not self.is_looked_at:
            return "initiating", "Experiment is initiating."
        if self.failure:
            return "failed", self.failure
        return ("completed", "Experiment completed.") if now >= self.ends_at else ("running", "Experiment is running.")


class Fis:
    """Templates and experiments of an account. `most_targets` is AWS's default quota for one action; `has_role`:
    whether the role that FIS needs was ever made, as an account's first experiment does."""

    def __init__(self, *, find_spot: FindSpot, rebalance: Interrupt, interrupt: Interrupt) -> None:
        self.most_targets = 5
        self.has_role = True
        self.experiments: dict[str, Experiment] = {}
        self.templates: dict[str, Json] = {}
        self._tokens: dict[tuple[str, str], str] = {}
        self._find_spot = find_spot
        self._rebalance = rebalance
        self._interrupt = interrupt

    def close(self) -> None:
        for experiment in self.experiments.values():
            for timer in experiment.timers:
                timer.cancel()

    def answer(self, caller: Caller, method: str, path: str, document: Json) -> Json:
        collection, _, id_ = path.strip("/").partition("/")
        match (method, collection, bool(id_)):
            case ("POST", "experimentTemplates", False):
                return {"experimentTemplate": self._create(caller, document)}
            case ("DELETE", "experimentTemplates", True):
                return {"experimentTemplate": self._delete(caller, id_)}
            case ("POST", "experiments", False):
                return {"experiment": self._start(caller, document)}
            case ("GET", "experiments", True):
                return {"experiment": self._get(caller, id_)}
            case _:
                raise AwsError("UnknownOperationException", f"The sandbox's FIS does not know {method} {path}")

    def _create(self, caller: Caller, document: Json) -> Json:
        role, tags = text(document, "roleArn"), document.get("tags", {})
        token = text(document, "clientToken")
        caller.need("fis:CreateExperimentTemplate", resource=_arn(caller, "experiment-template/*"))
        _need_tags(caller, "experiment-template/*", tags)
        caller.need("iam:PassRole", resource=role, context={"iam:PassedToService": "fis.amazonaws.com"})
        if not document.get("stopConditions"):
            raise AwsError("ValidationException", "stopConditions is required")
        _action_of(document)
        known = self._tokens.get((caller.region, token))
        if known in self.templates:
            return self.templates[known]
        id_ = f"EXT{secrets.token_hex(8).upper()}"
        made = {name: document[name] for name in ("description", "targets", "actions", "stopConditions", "roleArn")}
        about = {"id": id_, "arn": _arn(caller, f"experiment-template/{id_}"), "tags": tags}
        template = made | about | {"creationTime": caller.now, "lastUpdateTime": caller.now}
        self.templates[id_] = template
        self._tokens[caller.region, token] = id_
        return template

    def _delete(self, caller: Caller, id_: str) -> Json:
        template = self._template(caller, id_)
        context = tag_context(template["tags"], kind="ResourceTag")
        caller.need("fis:DeleteExperimentTemplate", resource=template["arn"], context=context)
        del self.templates[id_]
        return template

    def _template(self, caller: Caller, id_: str) -> Json:
        template = self.templates.get(id_)
        if template is None or template["arn"].split(":")[3] != caller.region:
            raise AwsError("ResourceNotFoundException", f"Experiment template {id_} not found", status=404)
        return template

    def _start(self, caller: Caller, document: Json) -> Json:
        template = self._template(caller, text(document, "experimentTemplateId"))
        token, tags = text(document, "clientToken"), document.get("tags", {})
        context = tag_context(template["tags"], kind="ResourceTag")
        caller.need("fis:StartExperiment", resource=template["arn"], context=context)
        if not self.has_role:
            arn = role_arn(caller.account, "aws-service-role/fis.amazonaws.com/AWSServiceRoleForFIS")
            context = {"iam:AWSServiceName": "fis.amazonaws.com"}
            caller.need("iam:CreateServiceLinkedRole", resource=arn, context=context)
            self.has_role = True
        _need_tags(caller, "experiment/*", tags)
        known = self._tokens.get((caller.region, token))
        if known in self.experiments:
            return self._shown(caller, self.experiments[known])
        arns, minutes = _action_of(template)
        experiment = Experiment(
            id=f"EXP{secrets.token_hex(8).upper()}",
            region=caller.region,
            body=template,
            tags=tags,
            started_at=caller.now,
            ends_at=caller.now + minutes * 60,
        )
        self.experiments[experiment.id] = experiment
        self._tokens[caller.region, token] = experiment.id
        self._run(caller, experiment, arns, delay_s=minutes * 60 - _NOTICE_S)
        return self._shown(caller, experiment)

    def _run(self, caller: Caller, experiment: Experiment, arns: Sequence[str], *, delay_s: float) -> None:
        found = self._find_spot(caller.region, [arn.rpartition("/")[2] for arn in arns])
        if experiment.body["roleArn"] not in caller.access.roles:
            experiment.failure = f"Unable to assume role {experiment.body['roleArn']}"
        elif not found:
            experiment.failure = "Target resolution returned empty set"
        elif len(found) > self.most_targets:
            experiment.failure = f"Target resolution found more than {self.most_targets} SpotInstances for the action"
        else:
            self._rebalance(caller.region, found)
            if delay_s <= 0:
                self._interrupt(caller.region, found)
                return
            loop = asyncio.get_running_loop()
            experiment.timers.append(loop.call_later(delay_s, self._interrupt, caller.region, found))

    def _get(self, caller: Caller, id_: str) -> Json:
        experiment = self.experiments.get(id_)
        if experiment is None or experiment.region != caller.region:
            raise AwsError("ResourceNotFoundException", f"Experiment {id_} not found", status=404)
        context = tag_context(experiment.tags, kind="ResourceTag")
        caller.need("fis:GetExperiment", resource=_arn(caller, f"experiment/{id_}"), context=context)
        experiment.is_looked_at = True
        return self._shown(caller, experiment)

    def _shown(self, caller: Caller, experiment: Experiment) -> Json:
        status, reason = experiment.status(caller.now)
        state = {"status": status, "reason": reason}
        actions = {name: action | {"state": state} for name, action in experiment.body["actions"].items()}
        shown: Json = {
            "id": experiment.id,
            "arn": _arn(caller, f"experiment/{experiment.id}"),
            "experimentTemplateId": experiment.body["id"],
            "roleArn": experiment.body["roleArn"],
            "state": state,
            "targets": experiment.body["targets"],
            "actions": actions,
            "stopConditions": experiment.body["stopConditions"],
            "creationTime": experiment.started_at,
            "startTime": experiment.started_at,
            "tags": dict(experiment.tags),
        }
        return shown if status in ("initiating", "running") else shown | {"endTime": caller.now}


def _arn(caller: Caller, resource: str) -> str:
    return f"arn:aws:fis:{caller.region}:{caller.account}:{resource}"


def _need_tags(caller: Caller, resource: str, tags: Mapping[str, str]) -> None:
    if tags:
        context = tag_context(tags, kind="RequestTag")
        caller.need("fis:TagResource", resource=_arn(caller, resource), context=context)


def _action_of(document: Json) -> tuple[list[str], int]:
    """The instance ARNs and the minutes of the one action. Raises AwsError(ValidationException)."""
    try:
        (action,) = document["actions"].values()
        target = document["targets"][action["targets"]["SpotInstances"]]
        found = _DURATION.fullmatch(action["parameters"]["durationBeforeInterruption"])
        described = (action["actionId"], target["resourceType"], target["selectionMode"])
        arns = list(target["resourceArns"])
    except (KeyError, ValueError) as error:
        raise AwsError("ValidationException", f"The template's actions or targets lack {error}") from None
    if described != (ACTION, TARGET, "ALL"):
        raise AwsError("ValidationException", f"The sandbox's FIS knows {ACTION} for ALL of {TARGET} only")
    if found is None or not _SHORTEST_MIN <= int(found[1]) <= _LONGEST_MIN or not arns:
        raise AwsError("ValidationException", "durationBeforeInterruption is PT2M to PT15M; one resource at least")
    return arns, int(found[1])
