"""Metadata servers for the machines of the sandbox's Compute Engine: what `cloud_hosts` starts beside each machine."""

from collections.abc import Mapping

from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.cloud_identity import GoogleNotary
from autoscaler.sandbox.cloud_machines import Machine
from autoscaler.sandbox.gce_face import GceFace
from autoscaler.sandbox.gce_metadata_face import GceMetadataFace
from autoscaler.sandbox.metadata_site import MetadataSite


class GceMetadataSites:
    """Called with a machine, starts its server. `notary` signs identity tokens."""

    def __init__(self, driver: CloudDriver, face: GceFace, notary: GoogleNotary) -> None:
        self._driver = driver
        self._face = face
        self._notary = notary

    async def __call__(self, machine: Machine) -> tuple[MetadataSite, Mapping[str, str]]:
        facts = self._face.facts(machine.id)
        server = GceMetadataFace(
            machine,
            lambda: facts,
            self._notary,
            faults=self._driver.account.faults,
            clock=lambda: self._driver.now,
        )
        site = await MetadataSite(server.app()).start()
        return site, {"GCE_METADATA_HOST": site.authority}
