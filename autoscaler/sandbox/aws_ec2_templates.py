"""Launch templates of the sandbox's EC2: versions, names, ids, and what happens to one behind a caller's back."""

import secrets
from dataclasses import dataclass, field

from autoscaler.sandbox.aws_access import Caller, tag_context
from autoscaler.sandbox.aws_ec2_specification import (
    Specification,
    Tags,
    check_tag_keys,
    parse_specification,
    parse_tags,
    show_specification,
)
from autoscaler.sandbox.aws_filters import Filters, page, tag_rows
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml, instant

_SHORTEST_NAME, _LONGEST_NAME = 3, 128
_PAGES = (1, 200)


@dataclass(slots=True, kw_only=True)
class LaunchTemplate:
    """One template; version n is `versions[n - 1]`."""

    id: str
    name: str
    region: str
    created_at: float
    created_by: str
    tags: Tags
    versions: list[Specification] = field(default_factory=list)
    default_version: int = 1

    def version(self, wanted: str) -> tuple[int, Specification]:
        """By number, "$Latest", "$Default" or nothing. Raises AwsError."""
        match wanted:
            case "" | "$Default":
                number = self.default_version
            case "$Latest":
                number = len(self.versions)
            case _:
                number = int(wanted) if wanted.isdigit() else 0
        if not 1 <= number <= len(self.versions):
            message = f"Could not find the specified version {wanted} for the launch template with ID {self.id}."
            raise AwsError("InvalidLaunchTemplateId.VersionNotFound", message)
        return number, self.versions[number - 1]


class LaunchTemplates:
    """The templates of all regions. Tests may change or remove them; AWS's own people do."""

    def __init__(self) -> None:
        self.templates: dict[str, LaunchTemplate] = {}
        self._made: dict[tuple[str, str], tuple[str, str]] = {}

    def change(self, template_id: str, specification: Specification) -> None:
        """Somebody made a new version and its default."""
        template = self.templates[template_id]
        template.versions.append(specification)
        template.default_version = len(template.versions)

    def find(self, region: str, *, id_: str = "", name: str = "") -> LaunchTemplate:
        """Raises AwsError in the words of the two ways to ask."""
        if id_:
            template = self.templates.get(id_)
            if template is not None and template.region == region:
                return template
            message = f"The specified launch template, with template ID {id_}, does not exist."
            raise AwsError("InvalidLaunchTemplateId.NotFound", message)
        for template in self.templates.values():
            if (template.region, template.name) == (region, name):
                return template
        message = f"The specified launch template, with template name {name}, does not exist."
        raise AwsError("InvalidLaunchTemplateName.NotFoundException", message)

    def create(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        name = parameters.required("LaunchTemplateName")
        tags = parse_tags(parameters).get("launch-template", {})
        specification = parse_specification(parameters.structure("LaunchTemplateData"))
        token = parameters.text("ClientToken")
        parameters.text("VersionDescription")
        context = tag_context(tags, kind="RequestTag")
        caller.need("ec2:CreateLaunchTemplate", resource=_arn(caller, "*"), context=context)
        if tags:
            context = {**context, "ec2:CreateAction": "CreateLaunchTemplate"}
            caller.need("ec2:CreateTags", resource=_arn(caller, "*"), context=context)
        check_tag_keys(specification)
        parameters.complete()
        return self._create(caller, name, tags, specification, token=token, fingerprint=parameters.fingerprint())

    def _create(
        self, caller: Caller, name: str, tags: Tags, specification: Specification, *, token: str, fingerprint: str
    ) -> dict[str, Xml]:
        if token and (before := self._made.get((caller.region, token))):
            if before[1] != fingerprint:
                raise AwsError("IdempotentParameterMismatch", "The client token was used with other parameters.")
            if before[0] in self.templates:
                return {"launchTemplate": _show(self.templates[before[0]])}
        if not _SHORTEST_NAME <= len(name) <= _LONGEST_NAME:
            raise AwsError("InvalidLaunchTemplateName.MalformedException", "A name has 3 to 128 characters.")
        if any((one.region, one.name) == (caller.region, name) for one in self.templates.values()):
            raise AwsError("InvalidLaunchTemplateName.AlreadyExistsException", "Launch template name already in use.")
        template = LaunchTemplate(
            id=f"lt-{secrets.token_hex(9)[:17]}",
            name=name,
            region=caller.region,
            created_at=caller.now,
            created_by=caller.key.arn,
            tags=tags,
            versions=[specification],
        )
        self.templates[template.id] = template
        if token:
            self._made[caller.region, token] = (template.id, fingerprint)
        return {"launchTemplate": _show(template)}

    def describe(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        caller.need("ec2:DescribeLaunchTemplates")
        ids, names = parameters.texts("LaunchTemplateId"), parameters.texts("LaunchTemplateName")
        found = [self.find(caller.region, id_=id_) for id_ in ids]
        found += [self.find(caller.region, name=name) for name in names]
        if not ids and not names:
            found = [one for one in self.templates.values() if one.region == caller.region]
        readers = {"launch-template-name": lambda one: one.name, "create-time": lambda one: str(one.created_at)}
        found = Filters(parameters).apply(found, readers, tags=lambda one: one.tags)
        rows, following, _ = page(parameters, found, bounds=_PAGES, default=200)
        return {"launchTemplates": [_show(one) for one in rows], "nextToken": following}

    def describe_versions(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        caller.need("ec2:DescribeLaunchTemplateVersions")
        template = self.find(
            caller.region, id_=parameters.text("LaunchTemplateId"), name=parameters.text("LaunchTemplateName")
        )
        wanted = parameters.texts("LaunchTemplateVersion") or [str(n + 1) for n in range(len(template.versions))]
        rows, following, _ = page(parameters, wanted, bounds=_PAGES, default=200)
        return {
            "launchTemplateVersionSet": [_show_version(template, *template.version(one)) for one in rows],
            "nextToken": following,
        }

    def delete(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        id_, name = parameters.text("LaunchTemplateId"), parameters.text("LaunchTemplateName")
        template = self.find(caller.region, id_=id_, name=name)
        context = tag_context(template.tags, kind="ResourceTag")
        caller.need("ec2:DeleteLaunchTemplate", resource=_arn(caller, template.id), context=context)
        del self.templates[template.id]
        return {"launchTemplate": _show(template)}


def _arn(caller: Caller, id_: str) -> str:
    return f"arn:aws:ec2:{caller.region}:{caller.account}:launch-template/{id_}"


def _show(template: LaunchTemplate) -> dict[str, Xml]:
    return {
        "launchTemplateId": template.id,
        "launchTemplateName": template.name,
        "createTime": instant(template.created_at),
        "createdBy": template.created_by,
        "defaultVersionNumber": template.default_version,
        "latestVersionNumber": len(template.versions),
        "tagSet": tag_rows(template.tags),
    }


def _show_version(template: LaunchTemplate, number: int, specification: Specification) -> dict[str, Xml]:
    return {
        "launchTemplateId": template.id,
        "launchTemplateName": template.name,
        "versionNumber": number,
        "createTime": instant(template.created_at),
        "createdBy": template.created_by,
        "defaultVersion": number == template.default_version,
        "launchTemplateData": show_specification(specification),
    }
