"""Hellos at a running daemon with real machines: forged, replayed, late and foreign ones get nothing."""

import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

from runners.agent.evidence import local_evidence
from tests.integration.daemon_kit import Daemon, Site, pool_text, site
from tests.polling import until

STANDING = pool_text("linux", "github", "linux").replace("max = 4", "min = 1\nmax = 4")
THIEF = "ab" * 32


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that is up, and what only its host knows of it."""

    instance: str
    provider_id: str
    batch: str
    key: bytes

    def hello(self, *, claim_key: str = THIEF, at: float | None = None, **changes: Any) -> dict[str, Any]:
        """A valid hello of somebody who holds this machine's key, unless changed."""
        claim = hashlib.sha256(bytes.fromhex(claim_key)).hexdigest()
        evidence = local_evidence(self.provider_id, self.key, claim, time.time() if at is None else at)
        body = {"provider": "here", "batch": self.batch, "claim": claim, "evidence": evidence, "runner": None}
        return {**body, **changes}


async def ready_machine(here: Site, daemon: Daemon, *, other_than: str = "") -> Machine:
    """The standing machine of the pool, once its agent said hello."""

    async def found() -> Any:
        rows = (await daemon.api("instances"))["instances"]
        return next((row for row in rows if row["state"] == "ready" and row["id"] != other_than), None)

    row = await until(found, timeout_s=25)
    deployment = here.machines / "ours"
    boot = json.loads(next((deployment / row["provider_id"]).rglob("boot.json")).read_text())
    key = key_of(here, row["provider_id"])
    return Machine(instance=row["id"], provider_id=row["provider_id"], batch=boot["batch"], key=key)


async def test_hellos_that_prove_nothing_get_nothing_and_change_nothing() -> None:
    async with site() as here:
        daemon = here.daemon(pools=STANDING)
        await daemon.start()
        machine = await ready_machine(here, daemon)
        good = machine.hello()
        evidence = good["evidence"]
        foreign = Machine(machine.instance, machine.provider_id, machine.batch, key=b"the key of another deployment...")
        claim = hashlib.sha256(b"another claim").hexdigest()
        refused = {
            "forged signature": {**good, "evidence": {**evidence, "signature": "0" * 64}},
            "no signature": {**good, "evidence": {"instance_id": machine.provider_id, "time": evidence["time"]}},
            "another machine's name": {**good, "evidence": {**evidence, "instance_id": "local-0000000000000000"}},
            "another time": {**good, "evidence": {**evidence, "time": str(int(evidence["time"]) + 1)}},
            "replayed under another claim": {**good, "claim": claim},
            "too late": machine.hello(at=time.time() - 61),
            "from the future": machine.hello(at=time.time() + 62),
            "another deployment's key": foreign.hello(),
            "unknown provider": {**good, "provider": "elsewhere"},
            "a path for a name": {**good, "evidence": {**evidence, "instance_id": "../../etc"}},
        }
        for what, hello in refused.items():
            assert await daemon.post("/agent/v1/hello", hello) == (403, {}), what
        nowhere = Machine("i-0", "local-0123456789abcdef", "b-0", key_of(here, "local-0123456789abcdef"))
        assert (await daemon.post("/agent/v1/hello", nowhere.hello()))[0] in (403, 503), "a machine never launched"
        assert (await daemon.post("/agent/v1/hello", machine.hello(batch="b-other")))[0] == 503
        for call in ("assignment", "events"):
            body = {"instance": machine.instance, "events": []}
            assert (await daemon.post(f"/agent/v1/{call}", body, key=THIEF))[0] == 401
        rows = (await daemon.api("instances"))["instances"]
        assert [(row["id"], row["state"]) for row in rows] == [(machine.instance, "ready")]
        assert not [row for row in (await daemon.api("ledger"))["ledger"] if row["action"] == "claim"]


def key_of(here: Site, provider_id: str) -> bytes:
    master = (here.machines / "ours" / "master.key").read_bytes()
    return hmac.new(master, provider_id.encode(), hashlib.sha256).digest()


async def test_a_second_valid_claim_is_refused_on_record_and_the_machine_is_replaced() -> None:
    async with site() as here:
        daemon = here.daemon(pools=STANDING)
        await daemon.start()
        machine = await ready_machine(here, daemon)
        assert await daemon.post("/agent/v1/hello", machine.hello()) == (403, {})
        replaced = await ready_machine(here, daemon, other_than=machine.instance)
        assert replaced.provider_id != machine.provider_id

        async def ended() -> bool:
            rows = (await daemon.api("instances"))["instances"]
            return (machine.instance, "disputed") in [(row["id"], row["ending"]) for row in rows]

        await until(ended)
        (entry,) = [row for row in (await daemon.api("ledger"))["ledger"] if row["action"] == "claim"]
        assert entry["subject"] == machine.instance
        names = here.submit_github("true")
        await here.succeed(names)
