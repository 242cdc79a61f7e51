"""The probes of `autoscaler check`: ask the host and the network whether a valid configuration can work here.

Each probe answers with findings, never with an exception, within a time limit of its own, and changes nothing: the
store is looked at, not opened (opening migrates it); listen addresses are bound and let go.
"""

import asyncio
import errno
import os
import socket
import sqlite3
import ssl
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from autoscaler.config_types import Address, Config, TlsConfig
from autoscaler.model import Pool
from autoscaler.placement import exclusion
from autoscaler.rules import rules_of
from autoscaler.spi import (
    CapacityType,
    Finding,
    Forge,
    ForgeError,
    ForgeRefused,
    ForgeUnauthorized,
    InvalidRequest,
    Offering,
    Provider,
    ProviderError,
    ProviderSettings,
    Scope,
    Unauthorized,
    Verdict,
)

_LIMIT_S = 30.0
_CLOSE_LOOK_S = 120.0
_CONNECT_LIMIT_S = 5.0
FEW_CAPACITY_POOLS = 4
"""Measured: below that, spot runs dry together often enough to be noticed; six and more make it rare."""
_SQLITE_MAGIC = b"SQLite format 3\0"


async def probe_host(config: Config, providers: Sequence[Provider]) -> list[Finding]:
    """What this machine says: store, listeners, certificate, isolation of local machines."""
    autoscaler = config.autoscaler
    findings = [await _probe_store(autoscaler.store)]
    for key, address in (("listen", autoscaler.listen), ("admin_listen", autoscaler.admin_listen)):
        findings.append(_probe_listener(f"autoscaler.{key}", address))
    if autoscaler.tls is not None:
        findings.append(_probe_certificate(autoscaler.tls))
    for index, settings in enumerate(config.providers):
        for provider in providers:
            if provider.name == settings.name:
                findings += _probe_isolation(f"provider[{index}]", provider)
    return findings


async def _probe_store(url: str) -> Finding:
    key = "autoscaler.store"
    try:
        if url.startswith("sqlite:"):
            return Finding(verdict=Verdict.OK, key=key, message=_look_at_file(Path(url.removeprefix("sqlite:///"))))
        return Finding(verdict=Verdict.OK, key=key, message=await _reach_postgres(url))
    except (OSError, ValueError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        remedy = (
            "Make its folder, writable for the daemon's user, or name another path"
            if url.startswith("sqlite:")
            else "Start PostgreSQL, or correct host and port"
        )
        return Finding(verdict=Verdict.REFUSED, key=key, message=f"{url}: {reason}", remedy=remedy)


def _look_at_file(path: Path) -> str:
    """What there is at a SQLite path. Raises OSError or sqlite3.Error when a daemon could not work with it."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"the folder {path.parent} is not writable")
    if not path.exists():
        return f"{path} will be made"
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, "the file is not readable and writable")
    with path.open("rb") as file:
        head = file.read(len(_SQLITE_MAGIC))
    if head and head != _SQLITE_MAGIC:
        raise sqlite3.DatabaseError("the file is not a SQLite database")
    return f"{path} is there and writable"


async def _reach_postgres(url: str) -> str:
    """Raises OSError or TimeoutError when nobody answers where PostgreSQL should be."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    host = query.get("host", [parts.hostname or ""])[0] or os.environ.get("PGHOST", "localhost")
    port = int(query.get("port", [str(parts.port or os.environ.get("PGPORT", "5432"))])[0])
    host = unquote(host)
    async with asyncio.timeout(_CONNECT_LIMIT_S):
        if host.startswith("/"):
            _, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return f"something listens at {host}, port {port}"


def _probe_listener(key: str, address: Address) -> Finding:
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "Fine if that is the daemon itself; else stop the other program or use another port"
            return Finding(verdict=Verdict.WARNING, key=key, message=f"{address} is in use", remedy=remedy)
        remedy = "Use an address of this machine, and a port that the daemon's user may bind (above 1023)"
        return Finding(verdict=Verdict.REFUSED, key=key, message=f"{address}: {error.strerror}", remedy=remedy)
    return Finding(verdict=Verdict.OK, key=key, message=f"{address} is free")


def _probe_certificate(tls: TlsConfig) -> Finding:
    key = "autoscaler.tls"
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.private_key)
    except (OSError, ValueError) as error:
        detail = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
        return Finding(
            verdict=Verdict.REFUSED,
            key=key,
            message=f"{tls.certificate} with {tls.private_key}: {detail}",
            remedy="Give a PEM certificate chain and its own PEM key, both readable for the daemon, without passphrase",
        )
    if b"PRIVATE KEY-----" in tls.certificate.read_bytes():
        return Finding(
            verdict=Verdict.REFUSED,
            key=f"{key}.certificate",
            message=f"{tls.certificate} holds a private key, and is what machines are told to trust",
            remedy="Keep the key in a file of its own, and name that one as private_key",
        )
    return Finding(verdict=Verdict.OK, key=key, message=f"{tls.certificate} fits its key")


def _probe_isolation(key: str, provider: Provider) -> list[Finding]:
    """Providers whose machines share this host say how they keep them apart (`isolation`, `drops_root`)."""
    rung = getattr(provider, "isolation", None)
    if not isinstance(rung, str):
        return []
    findings = [Finding(verdict=Verdict.OK, key=f"{key}.isolation", message=f'machines are kept apart by "{rung}"')]
    if rung == "process":
        message = "machines are mere process groups here: jobs see each other's files"
        remedy = "Install bubblewrap and allow user namespaces, or trust every job that runs here"
        findings = [Finding(verdict=Verdict.WARNING, key=f"{key}.isolation", message=message, remedy=remedy)]
    if os.geteuid() == 0 and not getattr(provider, "drops_root", True):
        message, remedy = "jobs would run as root", "Run the daemon as a user of its own, or install bubblewrap"
        findings.append(Finding(verdict=Verdict.WARNING, key=f"{key}.isolation", message=message, remedy=remedy))
    return findings


async def probe_online(config: Config, forges: Sequence[Forge], providers: Sequence[Provider]) -> list[Finding]:
    """What forges and clouds say: credentials, permissions, and whether any offering fits each pool."""
    asked: list[Awaitable[Finding]] = []
    looked: list[Awaitable[list[Finding]]] = []
    for index, forge_settings in enumerate(config.forges):
        for forge in forges:
            if forge.name == forge_settings.name:
                asked.append(_ask_forge(f"forge[{index}]", forge))
                if forge.name in config.telling_forges:
                    looked.append(_look_for_telling(f"forge[{index}].tell", forge, forge_settings.scopes))
    for index, provider_settings in enumerate(config.providers):
        for provider in providers:
            if provider.name == provider_settings.name:
                asked.append(_ask_provider(f"provider[{index}]", provider))
                looked.append(_look_closely(f"provider[{index}]", provider, _images_of(config, provider_settings)))
    asked += [_ask_offerings(config, index, providers) for index in range(len(config.pools))]
    answers, looks = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*looked))
    return [*answers, *(finding for found in looks for finding in found)]


def _images_of(config: Config, settings: ProviderSettings) -> dict[str, Mapping[str, str]]:
    """The references of the images that pools use at a provider."""
    used = {pool.image for pool in config.pools if settings.name in pool.providers}
    return {image.name: image.reference_for(settings) or {} for image in config.images if image.name in used}


async def _look_closely(key: str, provider: Provider, images: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """What the adapter itself finds, with its keys below the provider's section."""
    try:
        async with asyncio.timeout(_CLOSE_LOOK_S):
            found = await provider.check(images)
    except TimeoutError as error:
        return [_refused(key, error, has_bad_credentials=False)]
    return [replace(one, key=one.key if one.key.startswith("image ") else f"{key}.{one.key}") for one in found]


async def _ask_forge(key: str, forge: Forge) -> Finding:
    try:
        async with asyncio.timeout(_LIMIT_S):
            runners = await forge.list_runners()
    except (ForgeError, TimeoutError) as error:
        return _refused(key, error, has_bad_credentials=isinstance(error, (ForgeUnauthorized, ForgeRefused)))
    return Finding(verdict=Verdict.OK, key=key, message=f"{forge.name} answers; runners of ours: {len(runners)}")


async def _look_for_telling(key: str, forge: Forge, scopes: Sequence[Scope]) -> list[Finding]:
    """Why people cannot be told there what happened to their jobs. What else is wrong `_ask_forge` says."""
    problems: list[str] = []
    try:
        async with asyncio.timeout(_LIMIT_S):
            problems = [problem for scope in scopes if (problem := await forge.telling_problem(scope))]
    except (ForgeError, TimeoutError):
        return []
    remedy = "Grant what it names, or set tell = false: jobs are run again either way"
    return [
        Finding(verdict=Verdict.WARNING, key=key, message=f"people cannot be told: {problem}", remedy=remedy)
        for problem in dict.fromkeys(problems)
    ]


async def _ask_provider(key: str, provider: Provider) -> Finding:
    try:
        async with asyncio.timeout(_LIMIT_S):
            machines = await provider.list_instances()
    except (ProviderError, TimeoutError) as error:
        return _refused(key, error, has_bad_credentials=isinstance(error, (Unauthorized, InvalidRequest)))
    return Finding(verdict=Verdict.OK, key=key, message=f"{provider.name} answers; machines of ours: {len(machines)}")


def _refused(key: str, error: Exception, *, has_bad_credentials: bool) -> Finding:
    where = f"{key}.credentials" if has_bad_credentials else key
    remedy = (
        "Correct the credentials, or grant the permissions that the README lists"
        if has_bad_credentials
        else "Check its address and the network from here to it, then try again"
    )
    return Finding(
        verdict=Verdict.REFUSED, key=where, message=str(error) or f"no answer in {_LIMIT_S:g} s", remedy=remedy
    )


async def _ask_offerings(config: Config, index: int, providers: Sequence[Provider]) -> Finding:
    pool, key, found = config.pools[index], f"pool[{index}].shape", list[Offering]()
    for provider in providers:
        if provider.name in pool.providers:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    found += await provider.offerings(pool.shape)
            except (ProviderError, TimeoutError) as error:
                return _refused(key, error, has_bad_credentials=isinstance(error, Unauthorized))
    if found:
        spans_regions = any(one.regions for one in config.providers if one.name in pool.providers)
        return _judge_offerings(key, rules_of(config).pools[pool.name], found, spans_regions=spans_regions)
    return Finding(
        verdict=Verdict.REFUSED,
        key=key,
        message=f'no offering of its providers fits the shape of pool "{pool.name}"',
        remedy="Widen cpus, memory or types, or add a provider or region",
    )


def _judge_offerings(key: str, pool: Pool, found: Sequence[Offering], *, spans_regions: bool) -> Finding:
    """Whether the pool may use any of what fits, and enough of it."""
    reasons = {offering: exclusion(pool, offering) for offering in found}
    usable = [offering.capacity_pool for offering, why in reasons.items() if not why]
    spot = sum(place.capacity_type is CapacityType.SPOT for place in usable)
    if not usable:
        why = Counter(reasons.values()).most_common(1)[0][0]
        message = f'pool "{pool.name}" may use none of the {len(found)} offerings that fit it: {why}'
        return Finding(verdict=Verdict.REFUSED, key=key, message=message, remedy="Loosen what its reason names")
    if pool.spot_enabled and spans_regions and spot < FEW_CAPACITY_POOLS:
        message = f'pool "{pool.name}" can choose among {spot} spot capacity pools only'
        remedy = "Allow more machine types or zones: when they run dry together its jobs wait, or cost on_demand prices"
        return Finding(verdict=Verdict.WARNING, key=key, message=message, remedy=remedy)
    return Finding(verdict=Verdict.OK, key=key, message=f"{len(usable)} offerings fit it")
