"""Runner names: how they are made, and which machine one belongs to. A name is used once, for one registration."""

from autoscaler.model import Instance
from autoscaler.spi import InstanceId


def runner_name(prefix: str, row: Instance) -> str:
    """The name of the registration that this version of the row asks for: "<deployment>--<instance>-<version>"."""
    return f"{prefix}{row.id}-{row.version}"


def instance_named(runner: str) -> InstanceId | None:
    """The machine that a runner name was made for; None for names of other makers."""
    id_, dash, version = runner.partition("--")[2].rpartition("-")
    return InstanceId(id_) if dash and version.isdigit() else None
