"""Client tokens of the sandbox's EC2: the same request again gets the same answer, another one is a mismatch.

A token is burnt by the attempt, whether or not it succeeded (specs A8).
"""

from dataclasses import dataclass

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml

_LONGEST_TOKEN = 64


@dataclass(slots=True, kw_only=True)
class _Attempt:
    fingerprint: str
    answer: dict[str, Xml] | None = None


class ClientTokens:
    """Per region, action and token."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, str, str], _Attempt] = {}

    def begin(self, caller: Caller, parameters: Parameters) -> dict[str, Xml] | None:
        """The answer of an earlier success; None: go ahead. Raises AwsError(IdempotentParameterMismatch)."""
        token = parameters.text("ClientToken")
        if len(token) > _LONGEST_TOKEN or not token.isascii():
            raise AwsError("InvalidParameterValue", "Invalid value for parameter ClientToken: 64 ASCII characters")
        if not token:
            return None
        key, fingerprint = (caller.region, parameters.action, token), parameters.fingerprint()
        attempt = self._attempts.setdefault(key, _Attempt(fingerprint=fingerprint))
        if attempt.fingerprint != fingerprint:
            message = (
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
            )
            raise AwsError("IdempotentParameterMismatch", message)
        return attempt.answer

    def succeed(self, caller: Caller, parameters: Parameters, answer: dict[str, Xml]) -> dict[str, Xml]:
        """Keeps the answer for repeats, and gives it."""
        token = parameters.text("ClientToken")
        if token:
            self._attempts[caller.region, parameters.action, token].answer = answer
        return answer
