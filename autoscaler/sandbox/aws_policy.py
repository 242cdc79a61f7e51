"""IAM's policies as the sandbox's AWS evaluates them: so that the ones in deploy/aws can be put in force and tested.

An allow must match action, resource and every condition; a matching deny wins; what nobody allows is denied. Only the
condition operators that our policies use are known; others are an error, never a silent yes.
"""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from string import Template
from typing import Any

from autoscaler.sandbox.aws_access import Call, Policy

_NEGATIONS = frozenset({"StringNotEquals", "StringNotLike"})
_OPERATORS = frozenset({"StringEquals", "StringLike", *_NEGATIONS})


def policy_of(documents: Sequence[str], **variables: str) -> Policy:
    """What these policy documents (JSON, `${name}` filled from the variables) allow together. Raises ValueError."""
    statements = [
        statement
        for document in documents
        for statement in _listed(json.loads(Template(document).safe_substitute(variables))["Statement"])
    ]
    for statement in statements:
        if unknown := set(statement.get("Condition", {})) - _OPERATORS:
            raise ValueError(f"condition operators that the sandbox does not know: {sorted(unknown)}")

    def allows(call: Call) -> bool:
        effects = {statement["Effect"] for statement in statements if _applies(statement, call)}
        return "Allow" in effects and "Deny" not in effects

    return allows


def _applies(statement: Mapping[str, Any], call: Call) -> bool:
    actions, resources = _listed(statement["Action"]), _listed(statement["Resource"])
    return (
        any(fnmatchcase(call.permission.lower(), action.lower()) for action in actions)
        and any(fnmatchcase(call.resource, resource) for resource in resources)
        and (call.names_nothing or _hold(statement, call))
    )


def _hold(statement: Mapping[str, Any], call: Call) -> bool:
    """Whether every condition does."""
    return all(
        _holds(operator, call.context.get(key), _listed(wanted))
        for operator, keys in statement.get("Condition", {}).items()
        for key, wanted in keys.items()
    )


def _holds(operator: str, found: str | None, wanted: Sequence[str]) -> bool:
    """A key that the call does not have fails a positive condition and passes a negated one."""
    if found is None:
        return operator in _NEGATIONS
    hits = any(fnmatchcase(found, one) if operator.endswith("Like") else found == one for one in wanted)
    return hits != (operator in _NEGATIONS)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
