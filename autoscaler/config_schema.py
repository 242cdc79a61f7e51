"""The shape of `config.toml` but for its pools: one pydantic model per table, each key with what is allowed there.

Owns what a section may say by itself; checks across sections are in `config_checks`. The description of each key is
the remedy that an error shows, so it says what to write. `build` turns a section into the frozen value the core
uses; defaults are those of the values, written down once, in `config_types`.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from autoscaler.config_fields import (
    ARCH,
    BY_REFERENCE,
    DURATION,
    MONEY,
    NAME,
    YES_NO,
    Arch,
    Credential,
    Duration,
    Listener,
    Money,
    Name,
    Networks,
    Reference,
    Secrets,
    Section,
    StoreUrl,
    Text,
    Texts,
    Url,
)
from autoscaler.config_types import (
    Address,
    AutoscalerConfig,
    Caps,
    ImageConfig,
    ImageHooks,
    TlsConfig,
)
from autoscaler.spi import ForgeName, ForgeSettings, ProviderName, ProviderSettings, Scope


class CapsSection(Section):
    usd_per_hour: Money | None = Field(None, description=MONEY)
    usd_per_day: Money | None = Field(None, description=MONEY)
    instances: Annotated[int, Field(gt=0)] | None = Field(None, description="Write a whole number above 0")

    def build(self) -> Caps:
        return self.fill(Caps)


class TlsSection(Section):
    certificate: Text = Field(description="Write the path of a PEM file with the certificate chain")
    private_key: Text = Field(description="Write the path of the PEM file with the certificate's private key")

    def build(self) -> TlsConfig:
        return TlsConfig(certificate=Path(self.certificate), private_key=Path(self.private_key))


_AUTOSCALER = AutoscalerConfig(
    name="", listen=Address(host="", port=0), admin_listen=Address(host="127.0.0.1", port=9480), public_url=""
)


class AutoscalerSection(Section):
    name: Name = Field(description=NAME)
    listen: Listener = Field(description='Write "address:port" for webhooks and agents, as in "0.0.0.0:8480"')
    admin_listen: Listener = Field(
        _AUTOSCALER.admin_listen, description='Write "address:port" for operators, as in "127.0.0.1:9480"'
    )
    public_url: Url = Field(
        description='Write the http or https URL at which machines and forges reach "listen", as in "https://ci.example.com"'
    )
    tls: TlsSection | None = Field(None, description="Write a table with certificate and private_key")
    store: StoreUrl = Field(
        _AUTOSCALER.store,
        description='Write "sqlite:///relative/path.db", "sqlite:////absolute/path.db" or '
        '"postgresql://user@host/database"; a PostgreSQL password goes into PGPASSWORD or PGPASSFILE',
    )
    admin_tokens: Secrets = Field(_AUTOSCALER.admin_tokens, description=f"{BY_REFERENCE}. Give one, or a list of them")
    retention: Duration = Field(_AUTOSCALER.retention, description=DURATION)
    evidence_half_life: Duration = Field(_AUTOSCALER.evidence_half_life, description=DURATION)
    caps: CapsSection = Field(
        CapsSection(), description="Write a table of usd_per_hour, usd_per_day and instances, each if wanted"
    )
    chaos: bool = Field(_AUTOSCALER.chaos, description=YES_NO)
    tick: Duration = Field(_AUTOSCALER.tick, description=DURATION)
    list_instances: Duration = Field(_AUTOSCALER.list_instances, description=DURATION)
    list_runners: Duration = Field(_AUTOSCALER.list_runners, description=DURATION)
    trusted_proxies: Networks = Field(_AUTOSCALER.trusted_proxies, description='List networks, as in ["10.0.0.0/8"]')

    def build(self) -> AutoscalerConfig:
        return self.fill(AutoscalerConfig, tls=self.tls.build() if self.tls else None, caps=self.caps.build())


class ForgeSection(Section):
    """Keys that only one kind knows stand beside the others and go to its adapter as `options`."""

    model_config = ConfigDict(extra="allow")

    name: Name = Field(description=NAME)
    kind: Text = Field(description="Write the kind of an installed forge adapter")
    url: Url | None = Field(None, description='Write the address of the forge, as in "https://github.com"')
    api_url: Url | None = Field(None, description="Write the address of its API, or leave the key out")
    credentials: Mapping[str, Credential] = Field(
        description=f"Write a table of what the forge's adapter needs. {BY_REFERENCE}"
    )
    webhook_secret: Secrets = Field(description=f"{BY_REFERENCE}. To rotate it, list the new and the old one")
    scopes: Texts = Field(min_length=1, description='List at least one "org", "org/repo", "group" or "group/project"')
    poll: Duration = Field(timedelta(seconds=60), description=DURATION)
    tell: bool = Field(True, description=YES_NO)

    def build(self) -> ForgeSettings:
        return ForgeSettings(
            name=ForgeName(self.name),
            kind=self.kind,
            url=self.url or "",
            api_url=self.api_url or "",
            credentials=dict(self.credentials),
            webhook_secrets=self.webhook_secret,
            scopes=tuple(Scope(scope.strip("/")) for scope in self.scopes),
            poll=self.poll,
            options=dict(self.model_extra or {}),
        )


class ProviderSection(Section):
    """Keys that only one kind knows stand beside the others and go to its adapter as `options`."""

    model_config = ConfigDict(extra="allow")

    name: Name = Field(description=NAME)
    kind: Text = Field(description="Write the kind of an installed provider adapter")
    regions: Texts = Field((), description='Write a list of the provider\'s regions, as in ["us-east-1"]')
    endpoint_url: Url | None = Field(None, description="Write the address of another endpoint, or leave the key out")
    caps: CapsSection = Field(
        CapsSection(), description="Write a table of usd_per_hour, usd_per_day and instances, each if wanted"
    )

    def build(self) -> ProviderSettings:
        return ProviderSettings(
            name=ProviderName(self.name),
            kind=self.kind,
            regions=self.regions,
            endpoint_url=self.endpoint_url or "",
            options=dict(self.model_extra or {}),
        )


class HooksSection(Section):
    job_started: str = Field("", description="Write the path of a program in the image, run before each job")
    job_completed: str = Field("", description="Write the path of a program in the image, run after each job")
    on_interruption: str = Field(
        "", description="Write the path of a program in the image, run when the cloud takes a machine that runs a job"
    )
    on_interruption_limit: Duration | None = Field(None, description=DURATION)

    def build(self) -> ImageHooks:
        return self.fill(ImageHooks)


_IMAGE = ImageConfig(name="")


class ImageSection(Section):
    name: Name = Field(description=NAME)
    references: Mapping[str, Reference] = Field(
        min_length=1, description="Write one table of texts per provider name or kind, as in [image.references.local]"
    )
    arch: Arch = Field("x86_64", description=ARCH)
    prepull: Texts = Field(_IMAGE.prepull, description='Write a list of container images by digest, "name@sha256:..."')
    freshness: Duration | None = Field(_IMAGE.freshness, description=DURATION)
    hooks: HooksSection = Field(
        HooksSection(), description="Write a table of job_started, job_completed and on_interruption"
    )

    def build(self) -> ImageConfig:
        return self.fill(ImageConfig, hooks=self.hooks.build(), references=dict(self.references))
