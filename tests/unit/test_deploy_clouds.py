"""deploy/aws and deploy/gcp: the Terraform reads, refers to what is there alone, and grants no more than it names."""

import json
import re
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MODULES = ("aws", "gcp")
POLICIES = sorted((DEPLOY / "aws").glob("*.json"))
LOOKING = re.compile(r"(ec2:Describe|iam:Get|sqs:(Get|Receive|Delete)|pricing:Get|servicequotas:Get|fis:Get)")
_REFERENCE = re.compile(r"(?<![\w.\"/])(?:(data)\.)?((?:aws|google)_[a-z0-9_]+)\.([a-z_]+)\b")


def texts(module: str) -> str:
    return "\n".join(path.read_text() for path in sorted((DEPLOY / module).glob("*.tf")))


def blocks(module: str, kind: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted((DEPLOY / module).glob("*.tf")):
        with path.open() as file:
            found += hcl2.load(file).get(kind, [])
    return found


def names(module: str, kind: str) -> set[tuple[str, ...]]:
    """("aws_vpc", "runners") for resources and data, ("deployment",) for variables."""
    found = set()
    for block in blocks(module, kind):
        (outer,) = (key for key in block if not key.startswith("__"))
        inner = block[outer]
        labels = (outer.strip('"'),)
        if kind in ("resource", "data"):
            (name,) = (key for key in inner if not key.startswith("__"))
            labels = (*labels, name.strip('"'))
        found.add(labels)
    return found


def policy(path: Path) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads(path.read_text())["Statement"]
    return statements


def actions(statement: dict[str, Any]) -> list[str]:
    found = statement["Action"]
    return [found] if isinstance(found, str) else found


@pytest.mark.parametrize("module", MODULES)
def test_terraform_refers_only_to_what_it_declares(module: str) -> None:
    text = texts(module)
    assert set(re.findall(r"\bvar\.(\w+)", text)) <= {name for (name,) in names(module, "variable")}
    referred = {(kind, name) for data, kind, name in _REFERENCE.findall(text) if not data}
    assert referred <= names(module, "resource")
    assert {(kind, name) for data, kind, name in _REFERENCE.findall(text) if data} <= names(module, "data")
    (given,) = blocks(module, "locals")
    assert set(re.findall(r"\blocal\.(\w+)", text)) <= set(given)


@pytest.mark.parametrize("module", MODULES)
def test_every_variable_is_used_and_described(module: str) -> None:
    text = texts(module)
    for block in blocks(module, "variable"):
        (name,) = (key for key in block if not key.startswith("__"))
        assert f"var.{name.strip(chr(34))}" in text
        assert block[name]["description"]


@pytest.mark.parametrize("module", MODULES)
def test_files_that_terraform_reads_are_there(module: str) -> None:
    for name in re.findall(r"\$\{path\.module\}/([\w.-]+)", texts(module)):
        assert (DEPLOY / module / name).is_file(), name


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_policies_are_filled_in_completely(path: Path) -> None:
    (given,) = blocks("aws", "locals")
    assert set(re.findall(r"\$\{(\w+)\}", path.read_text())) <= set(given["policy_values"])
    assert f"${{path.module}}/{path.name}" in texts("aws")


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_no_action_is_granted_by_pattern_and_none_that_changes_something_without_a_bound(path: Path) -> None:
    for statement in policy(path):
        assert statement["Effect"] == "Allow"
        assert not [action for action in actions(statement) if "*" in action]
        changing = [action for action in actions(statement) if not LOOKING.match(action)]
        if changing:
            assert statement.get("Condition") or statement["Resource"] != "*", statement["Sid"]


def test_terminating_stopping_and_deleting_reach_our_machines_alone() -> None:
    tagged = {"StringEquals": {"aws:ResourceTag/autoscaler-deployment": "${deployment}"}}
    for statement in policy(DEPLOY / "aws/controller-policy.json"):
        if {"ec2:TerminateInstances", "ec2:StopInstances", "ec2:DeleteLaunchTemplate"} & set(actions(statement)):
            assert statement["Condition"] == tagged


def test_experiments_of_others_cannot_be_started() -> None:
    """They may run under any role of the account."""
    tagged = {"StringEquals": {"aws:ResourceTag/autoscaler-deployment": "${deployment}"}}
    for statement in policy(DEPLOY / "aws/game-day-policy.json"):
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        if any("experiment-template/" in one for one in resources):
            starts = {"fis:StartExperiment", "fis:DeleteExperimentTemplate"} & set(actions(statement))
            assert not starts or statement["Condition"] == tagged


def test_only_our_own_rules_may_send_to_the_notice_queue() -> None:
    text = (DEPLOY / "aws/main.tf").read_text()
    _, _, queue_policy = text.partition('"aws_sqs_queue_policy" "notices"')
    allow, deny, _ = queue_policy.partition('"NothingWithoutTls"')
    assert deny
    assert 'Principal = { Service = "events.amazonaws.com" }' in allow
    sources = re.search(r'ArnEquals = \{\s*"aws:SourceArn" = \[([^\]]*)\]', allow)
    assert sources is not None
    rules = {name for kind, name in names("aws", "resource") if kind == "aws_cloudwatch_event_rule"}
    assert set(re.findall(r"aws_cloudwatch_event_rule\.(\w+)\.arn", sources[1])) == rules


def test_the_runners_account_gets_no_role() -> None:
    for block in blocks("gcp", "resource"):
        (kind,) = (key for key in block if not key.startswith("__"))
        if "iam" in kind:
            assert "google_service_account.runner.member" not in json.dumps(block)


def test_the_role_of_google_cloud_names_each_permission_once_and_grants_no_admin() -> None:
    role = yaml.safe_load((DEPLOY / "gcp/role.yaml").read_text())
    granted = role["includedPermissions"]
    assert granted == sorted(set(granted))
    assert all(re.fullmatch(r"compute\.[a-zA-Z]+\.[a-zA-Z]+", one) for one in granted)
    assert not [one for one in granted if "setIam" in one or "osAdmin" in one]


def test_every_deployment_that_terraform_admits_has_names_that_google_takes() -> None:
    text = (DEPLOY / "gcp/main.tf").read_text()
    admitted = re.search(r'regex\("([^"]+)", var\.deployment', text)
    assert admitted is not None
    longest = max((one for n in range(1, 64) if re.fullmatch(admitted[1], one := "a" * n)), key=len)
    for suffix in ("", "-runner"):
        for deployment in ("a", longest):
            assert re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", f"autoscaler-{deployment}{suffix}")
    assert not re.fullmatch(admitted[1], "ci-")
