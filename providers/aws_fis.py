"""Game days on AWS: spot machines interrupted as the cloud itself does, by the Fault Injection Service.

Owns experiments from their template to its removal. AWS gives such a machine the usual two minutes and announces it
everywhere. An experiment takes at most five machines (its default quota), so that many go in several ones.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from autoscaler.spi import (
    Clock,
    Gates,
    InvalidRequest,
    OutcomeUnknown,
    ProviderError,
    ProviderId,
    Throttled,
    Unauthorized,
)

_log = structlog.get_logger(__name__)

_ACTION = "aws:ec2:send-spot-instance-interruptions"
_TARGET = "aws:ec2:spot-instance"
_LEAD = "PT2M"
_TARGETS_MOST = 5
_CALL_S = 20.0
_LOOKS, _LOOK_S = 10, 1.0
_STARTING = frozenset({"pending", "initiating"})
_FORBIDDEN = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation"})
_SLOW_DOWN = frozenset({"ThrottlingException", "Throttling", "TooManyRequestsException"})
_WRONG = frozenset({"ValidationException", "ResourceNotFoundException", "ConflictException"})


class AwsFis:
    """`role` is the ARN of the role that FIS takes on; `client` gives the region's FIS client."""

    def __init__(
        self,
        *,
        role: str,
        account: str,
        deployment: str,
        client: Callable[[str], Any],
        gates: Gates,
        clock: Clock,
        name: str,
    ) -> None:
        self._role = role
        self._account = account
        self._deployment = deployment
        self._client = client
        self._gate = gates.gate(f"{name}-fis", threads=2)
        self._clock = clock

    async def interrupt(self, region: str, ids: Sequence[ProviderId]) -> None:
        """Reclaim spot machines of a region in two minutes. Raises ProviderError; some may be taken even then."""
        if not self._role:
            raise InvalidRequest("spot machines cannot be interrupted without fis_role: set it (docs/deploy-aws.md)")
        parts = [ids[start : start + _TARGETS_MOST] for start in range(0, len(ids), _TARGETS_MOST)]
        outcomes = await asyncio.gather(*(self._experiment(region, part) for part in parts), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _experiment(self, region: str, ids: Sequence[ProviderId]) -> None:
        made = await self._call(region, "create_experiment_template", **self._template(region, ids))
        template_id = made["experimentTemplate"]["id"]
        try:
            started = await self._call(
                region,
                "start_experiment",
                clientToken=secrets.token_hex(16),
                experimentTemplateId=template_id,
                tags=self._tags,
            )
            await self._see_it_run(region, started["experiment"])
        finally:
            await self._remove(region, template_id)

    @property
    def _tags(self) -> dict[str, str]:
        return {"autoscaler-deployment": self._deployment}

    def _template(self, region: str, ids: Sequence[ProviderId]) -> dict[str, Any]:
        partition = self._role.split(":")[1]
        arns = [f"arn:{partition}:ec2:{region}:{self._account}:instance/{one}" for one in ids]
        return {
            "clientToken": secrets.token_hex(16),
            "description": f"Game day of autoscaler {self._deployment}: interrupt {len(ids)} spot machines",
            "roleArn": self._role,
            "stopConditions": [{"source": "none"}],
            "targets": {"machines": {"resourceType": _TARGET, "resourceArns": arns, "selectionMode": "ALL"}},
            "actions": {
                "interrupt": {
                    "actionId": _ACTION,
                    "parameters": {"durationBeforeInterruption": _LEAD},
                    "targets": {"SpotInstances": "machines"},
                }
            },
            "tags": self._tags,
        }

    async def _see_it_run(self, region: str, experiment: Any) -> None:
        """An experiment fails after its start was accepted: targets and role are looked at only then."""
        for _ in range(_LOOKS):
            state = experiment["state"]
            if state["status"] not in _STARTING:
                break
            await self._clock.sleep(_LOOK_S)
            experiment = (await self._call(region, "get_experiment", id=experiment["id"]))["experiment"]
        if experiment["state"]["status"] in ("failed", "stopped", "cancelled"):
            raise InvalidRequest(f"the experiment {experiment['id']} failed: {experiment['state'].get('reason', '')}")

    async def _remove(self, region: str, template_id: str) -> None:
        """What stays harms nothing: a log line is enough."""
        try:
            await self._call(region, "delete_experiment_template", id=template_id)
        except ProviderError as error:
            _log.warning("experiment_template_not_removed", region=region, template=template_id, error=str(error))

    async def _call(self, region: str, method: str, **arguments: Any) -> Any:
        def call() -> Any:
            return getattr(self._client(region), method)(**arguments)

        try:
            return await self._gate.call(call, timeout_s=_CALL_S)
        except ClientError as error:
            raise _translated(error, method) from None
        except (BotoCoreError, OSError) as error:
            raise OutcomeUnknown(f"fis {method} in {region}: {str(error)[:200] or type(error).__name__}") from None


def _translated(error: ClientError, method: str) -> ProviderError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    text = f"fis {method}: {code}: {error.response.get('Error', {}).get('Message', '')}"[:300]
    if code in _FORBIDDEN:
        action = "".join(part.capitalize() for part in method.split("_"))
        return Unauthorized(f"{text}; allow fis:{action} and iam:PassRole as deploy/aws/game-day-policy.json does")
    if code in _SLOW_DOWN:
        return Throttled(text, retry_after_s=5.0)
    return InvalidRequest(text) if code in _WRONG else ProviderError(text)
