"""What a machine is started with: the agent as one file, and the boot document.

Owns how the agent is packed. The archive is the same bytes for the same sources, so that its sha256 can travel in
user data and be checked by a machine that downloads it.
"""

import functools
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from autoscaler.spi import ProviderName

_START = "import sys\n\nfrom runners.agent.main import main\n\nsys.exit(main(sys.argv[1:]))\n"

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentArchive:
    """The agent as a zipapp for Python 3.9 or newer, standard library only."""

    data: bytes
    sha256: str


@functools.cache
def build_agent() -> AgentArchive:
    """Pack `runners/agent`; entries are sorted, dated alike and stored plain, so that the result is repeatable."""
    sources = {
        f"runners/agent/{path.name}": path.read_bytes() for path in (Path(__file__).parent / "agent").glob("*.py")
    }
    sources |= {"runners/__init__.py": b"", "__main__.py": _START.encode()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, sources[name])
    data = packed.getvalue()
    return AgentArchive(data=data, sha256=hashlib.sha256(data).hexdigest())


def boot_document(
    *,
    daemon_url: str,
    provider: ProviderName,
    boot_timeout: timedelta,
    max_lifetime: timedelta,
    image: Mapping[str, str],
    ca_pem: str = "",
    no_contact: timedelta = timedelta(minutes=5),
    stop_grace: timedelta = timedelta(seconds=30),
    hook_limit: timedelta | None = None,
) -> str:
    """The boot document of docs/agent-protocol.md, as JSON text, but for the batch, which the provider adds: so it is
    the same for all machines of a pool. It holds no secret: any process may read it. Of
    `ca_pem` it takes the certificates alone: a file of certificates may hold their key as well."""
    document: dict[str, object] = {
        "version": 1,
        "daemon_url": daemon_url,
        "ca_pem": "\n".join(_CERTIFICATE.findall(ca_pem)),
        "provider": provider,
        "agent_sha256": build_agent().sha256,
        "boot_timeout_s": boot_timeout.total_seconds(),
        "max_lifetime_s": max_lifetime.total_seconds(),
        "no_contact_s": no_contact.total_seconds(),
        "stop_grace_s": stop_grace.total_seconds(),
        "image": dict(image),
    }
    if hook_limit is not None:
        document["hook_limit_s"] = hook_limit.total_seconds()
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
