"""The `local` provider: each machine is an isolated process tree on this host, under a supervisor of its own.

Owns the Provider contract on top of `local_machines` (folders), `local_isolation` (how trees are kept apart) and
`local_supervisor` (the process beside each tree, which outlives the daemon). It keeps nothing in memory that the
folders do not say, so a restarted daemon finds the same machines.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import structlog

from autoscaler.spi import (
    CapacityUnavailable,
    CloudInstance,
    Evidence,
    Finding,
    Identity,
    IdentityRefused,
    InvalidRequest,
    LaunchBatch,
    LaunchResult,
    MachineState,
    Notice,
    Offering,
    OutcomeUnknown,
    Provider,
    ProviderError,
    ProviderId,
    ProviderName,
    ProviderSettings,
    ProviderStatus,
    ProviderTraits,
    Refusal,
    SettingsError,
    Shape,
    Surroundings,
    Verdict,
)
from providers.local_isolation import SEARCH_PATH, Isolation, make_passable, probe
from providers.local_limits import NO_LIMITS, Limits, find_limits
from providers.local_machines import ID_PREFIX, Machine, Machines, Plan
from providers.local_options import LocalOptions, parse

_log = structlog.get_logger(__name__)

_IDENTITY_WINDOW_S = 60.0
_LIFETIME_MARGIN = timedelta(minutes=2)  # the agent ends itself first, and says why
HOOK = "hook_"
"""How the boot document's names of the image's own hooks begin."""
_DEPLOYMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def create(settings: ProviderSettings, surroundings: Surroundings) -> Provider:
    """Entry point. Probes the isolation once. Raises SettingsError."""
    options = parse(settings)
    if not _DEPLOYMENT.fullmatch(surroundings.deployment):
        raise SettingsError("the deployment's name must be letters, digits, '.', '_' and '-'", key="name")
    try:
        make_passable(options.state_dir)
        isolation = probe(options.state_dir, options.isolation, options.binds)
        machines = Machines(options.state_dir / surroundings.deployment, settings.name)
        master_key = machines.master_key()
    except OSError as error:
        raise SettingsError(str(error), key="isolation" if error.errno is None else "state_dir") from error
    limits = find_limits(has_own_uid=isolation.drops_root) if options.has_limits else NO_LIMITS
    _log.info("local_isolation_chosen", provider=settings.name, isolation=isolation.rung, limits=limits.kind)
    return LocalProvider(
        settings.name,
        options,
        isolation=isolation,
        limits=limits,
        machines=machines,
        master_key=master_key,
        surroundings=surroundings,
    )


class LocalProvider:
    """See `autoscaler.spi.Provider`. `isolation` and `drops_root` tell `check` which rung is used."""

    def __init__(
        self,
        name: ProviderName,
        options: LocalOptions,
        *,
        isolation: Isolation,
        limits: Limits,
        machines: Machines,
        master_key: bytes,
        surroundings: Surroundings,
    ) -> None:
        self._name = name
        self._options = options
        self._isolation = isolation
        self._limits = limits
        self._machines = machines
        self._master_key = master_key
        self._clock = surroundings.clock
        self._agent = surroundings.agent
        self._reads = surroundings.gates.gate(f"{name}-reads", threads=1)
        self._writes = surroundings.gates.gate(f"{name}-writes", threads=2)

    @property
    def name(self) -> ProviderName:
        return self._name

    @property
    def traits(self) -> ProviderTraits:
        return ProviderTraits(is_up_at_once=True)

    @property
    def isolation(self) -> str:
        return self._isolation.rung

    @property
    def drops_root(self) -> bool:
        return self._isolation.drops_root

    async def offerings(self, shape: Shape) -> Sequence[Offering]:
        return [offering for offering in self._options.offerings if _fits(offering, shape)]

    async def launch(self, batch: LaunchBatch) -> LaunchResult:
        result: LaunchResult = await self._write(self._launch, batch, timeout_s=60.0)
        return result

    async def list_instances(self) -> Sequence[CloudInstance]:
        return [machine.instance for machine in await self._read(self._read_and_clean)]

    async def describe(self, ids: Sequence[ProviderId]) -> Sequence[CloudInstance]:
        found: list[Machine | None] = await self._read(
            lambda: [self._machines.read(provider_id) for provider_id in ids]
        )
        return [machine.instance for machine in found if machine is not None]

    async def terminate(self, ids: Sequence[ProviderId]) -> None:
        await self._write(self._each, self._machines.terminate, ids, timeout_s=20.0)

    async def interrupt(self, ids: Sequence[ProviderId], *, is_announced: bool = True) -> None:
        """Reclaim machines after `notice_s`; 0 takes them without a word."""

        def reclaim(provider_id: ProviderId) -> None:
            self._machines.interrupt(provider_id, notice_s=self._options.notice_s if is_announced else 0.0)

        await self._write(self._each, reclaim, ids, timeout_s=20.0)

    async def identify(self, evidence: Evidence) -> Identity:
        """Checks, in order: loopback peer, signature, time window, a machine of ours that lives."""
        if not _is_loopback(evidence.peer_address):
            raise IdentityRefused("the caller is not on this host", reason="address")
        provider_id = ProviderId(evidence.document.get("instance_id", ""))
        at = evidence.document.get("time", "")
        message = f"{provider_id}|{at}|{evidence.claim}".encode()
        expected = hmac.new(self._machine_key(provider_id), message, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected.encode(), evidence.document.get("signature", "").encode()):
            raise IdentityRefused("the signature does not fit", reason="signature")
        if not at.isdigit() or abs(self._clock.now().timestamp() - int(at)) > _IDENTITY_WINDOW_S:
            raise IdentityRefused("the evidence is too old or too young", reason="window")
        machine: Machine | None = await self._read(self._machines.read, provider_id)
        if machine is None or machine.instance.state in (MachineState.TERMINATING, MachineState.TERMINATED):
            raise IdentityRefused("no machine of ours", reason="unknown")
        return Identity(provider_id=provider_id)

    async def stop(self, ids: Sequence[ProviderId]) -> None:
        raise InvalidRequest(f"{self._name}: machines of this host cannot be stopped and started again")

    async def start(self, ids: Sequence[ProviderId]) -> Mapping[ProviderId, ProviderError]:
        raise InvalidRequest(f"{self._name}: machines of this host cannot be stopped and started again")

    def status(self) -> ProviderStatus:
        return ProviderStatus()

    async def check(self, images: Mapping[str, Mapping[str, str]]) -> Sequence[Finding]:
        """Images are folders and programs of this host."""
        problems = {name: self._isolation.problem_with_image(image) for name, image in images.items()}
        return [
            Finding(
                verdict=Verdict.REFUSED,
                key=f"image {name}",
                message=problem,
                remedy="Correct the image's references for this provider",
            )
            for name, problem in problems.items()
            if problem
        ]

    async def notices(self) -> Sequence[Notice]:
        """None ever: the agent of a local machine sees and reports its own notice."""
        return ()

    async def ack(self, notices: Sequence[Notice]) -> None:
        return None

    async def aclose(self) -> None:
        """Machines live on; nothing is held open."""
        return

    # ------------------------------------------------------------------ launching

    def _launch(self, batch: LaunchBatch) -> LaunchResult:
        document = _parse_user_data(batch)
        if problem := self._isolation.problem_with_image(document["image"]):
            raise InvalidRequest(problem)
        with self._machines.locked():
            present = self._machines.read_all()
            mine = [machine for machine in present if machine.instance.token == batch.token]
            used = Counter(m.instance.capacity_pool for m in present if m.ended_at is None)
            made: list[Machine] = []
            refusals: list[Refusal] = []
            wanted = batch.count - len(mine)
            uids = self._machines.free_uids() if self._isolation.drops_root else [os.getuid()] * wanted
            for offering in batch.offerings:
                place = offering.capacity_pool
                is_dry = self._options.is_refused(place, batch.token)
                room = 0 if is_dry else self._options.slots.get(place, 0) - used[place]
                for _ in range(max(0, min(wanted - len(made), room, len(uids)))):
                    index = len(mine) + len(made)
                    made.append(self._commit(batch, offering, document, index=index, uid=uids.pop(0)))
                if len(made) >= wanted:
                    break
                why = "refused, as refuse_share asks" if is_dry else "all slots (or all user ids) are taken"
                error = CapacityUnavailable(f"{place.key}: {why}")
                refusals.append(Refusal(offering=offering, error=error))
            # A repeat after a crash between intent and start finds machines without a supervisor: it starts them.
            unstarted = [m for m in mine if not m.has_started and m.ended_at is None] + made
            self._start(unstarted)
        living = [machine for machine in mine if machine.ended_at is None] + made
        return LaunchResult(instances=tuple(m.instance for m in living), refusals=tuple(refusals))

    def _commit(
        self, batch: LaunchBatch, offering: Offering, document: Mapping[str, Any], *, index: int, uid: int
    ) -> Machine:
        provider_id = ProviderId(f"{ID_PREFIX}{os.urandom(8).hex()}")
        command = self._isolation.command(
            self._machines.root / provider_id,
            uid=uid,
            image=document["image"],
            program=(
                *("{folder}/agent.pyz", "--folder", "{folder}", "--boot", "{folder}/boot.json"),
                *("--evidence", "local", "--instance", provider_id, "--key-fd", "{key_fd}"),
                *("--notice", "{notices}/notice.json"),
            ),
        )
        boot = {**document, "batch": batch.token, "image": command.image}
        spec = {
            "boot_delay_s": self._options.boot_delay_s(f"{batch.token}/{index}"),
            "max_lifetime_s": (batch.max_lifetime + _LIFETIME_MARGIN).total_seconds(),
            "prepare": command.prepare,
            "argv": (*self._limits.command, *command.argv),
            "cgroups": self._limits.cgroups(provider_id, self._options.memory_gib.get(offering.capacity_pool)),
            "env": {"PATH": SEARCH_PATH, "TMPDIR": command.tmp},
        }
        plan = Plan(
            provider_id=provider_id,
            token=batch.token,
            pool=batch.pool,
            capacity_pool=offering.capacity_pool,
            price_usd_hour=offering.price_usd_hour,
            spec=spec,
            uid=uid,
        )
        return self._machines.commit(plan, {"boot.json": json.dumps(boot).encode(), "agent.pyz": self._agent})

    def _start(self, machines: Sequence[Machine]) -> None:
        try:
            keys = [self._machine_key(machine.instance.provider_id).hex() for machine in machines]
            self._machines.start(list(zip(machines, keys, strict=True)))
        except OSError as error:
            raise OutcomeUnknown(f"some machines may not have started: {error}") from error

    def _machine_key(self, provider_id: ProviderId) -> bytes:
        return hmac.new(self._master_key, provider_id.encode(), hashlib.sha256).digest()

    # ------------------------------------------------------------------ plumbing

    def _read_and_clean(self) -> list[Machine]:
        machines = self._machines.read_all()
        removed = self._machines.clean(machines, keep_ended_s=self._options.keep_ended_s)
        return [machine for machine in machines if machine.instance.provider_id not in removed]

    @staticmethod
    def _each(function: Callable[[ProviderId], None], ids: Sequence[ProviderId]) -> None:
        for provider_id in ids:
            function(provider_id)

    async def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self._reads.call(function, *arguments, timeout_s=20.0)
        except (OSError, ValueError, KeyError) as error:
            raise ProviderError(f"{self._name}: {error}") from error

    async def _write(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        try:
            return await self._writes.call(function, *arguments, timeout_s=timeout_s)
        except (OSError, ValueError, KeyError) as error:  # TimeoutError included: the thread may still go on
            raise OutcomeUnknown(f"{self._name}: {error}") from error


def _fits(offering: Offering, shape: Shape) -> bool:
    machine_type = offering.capacity_pool.machine_type
    return (
        shape.cpus.admits(offering.cpus)
        and shape.memory_gib.admits(offering.memory_gib)
        and shape.arch == offering.arch
        and shape.gpus <= offering.gpus
        and (not shape.types or any(fnmatchcase(machine_type, glob) for glob in shape.types))
        and not any(fnmatchcase(machine_type, glob) for glob in shape.exclude)
    )


def _parse_user_data(batch: LaunchBatch) -> Mapping[str, Any]:
    """The boot document, its image being the batch's with the hooks that the document adds. Raises InvalidRequest for
    one that no agent could start with, and for a missing image or hook."""
    try:
        document = json.loads(batch.user_data)
    except ValueError:
        raise InvalidRequest("user data is not a boot document") from None
    if not isinstance(document, dict):
        raise InvalidRequest("user data is not a boot document")
    named = document.get("image")
    hooks = {key: str(path) for key, path in named.items() if key.startswith(HOOK)} if isinstance(named, dict) else {}
    image = {**batch.image, **hooks}
    for key, path in image.items():
        if not Path(path).exists():
            raise InvalidRequest(f"image.{key}: {path} does not exist on this host")
    github = batch.image.get("github_runner")
    if github is not None and not (Path(github) / "run.sh").is_file():
        raise InvalidRequest(f"image.github_runner: {github} holds no run.sh")
    return {**document, "image": image}


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)
