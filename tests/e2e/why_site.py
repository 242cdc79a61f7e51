"""A deployment with one waiting job for each thing that can be in its way, as the shipped plan itself explains it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from autoscaler.model import (
    Arrivals,
    Burn,
    Cooldown,
    EndReason,
    ForgeView,
    Instance,
    InstanceMove,
    InstanceState,
    Interruption,
    Job,
    JobState,
    LedgerEntry,
    Pool,
    PoolControl,
    Prediction,
    Rules,
    ScopeCooldown,
    Snapshot,
    Spoilage,
)
from autoscaler.plan import plan
from autoscaler.scores import Calibration, ScoredBin
from autoscaler.spi import (
    CapacityScope,
    CapacityType,
    ForgeName,
    ForgeTraits,
    InstanceId,
    Offering,
    PoolName,
    ProviderId,
    label_set,
)
from autoscaler.store import Changes
from tests.admin_world import GITHUB, OFFERING, SPOT, ExampleView, demand_of, instance, job, pool, rules_of, snapshot_of

S = InstanceState
SLOW = ForgeName("slow-forge")
TRAITS = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)
ON_DEMAND = replace(SPOT, capacity_type=CapacityType.ON_DEMAND)
BOUGHT = "1 queued job has no machine; on_demand because predicted breach 0.83 on spot, 0.21 on demand, target 60 s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A job, and what its page must say: in the sentence, of its start, as advice."""

    job: Job
    says: tuple[str, ...]
    starts: str = ""
    advice: str = ""


def _pool(name: str, **changes: object) -> Pool:
    return pool(PoolName(name), name, spill_enabled=False, **changes)


def _waiting(number: int, name: str, at: datetime, **changes: object) -> Job:
    return job(number, at, pool=PoolName(name), labels=label_set([name]), name=f"waits for {name}", **changes)


def _offering(machine_type: str) -> Offering:
    return replace(OFFERING, capacity_pool=replace(SPOT, machine_type=machine_type))


class WhySite:
    """`causes` by what is in the way; `view` serves them; `ended` are machines by who ended them."""

    def __init__(self) -> None:
        self.now = now = datetime.now(UTC)
        self.jobs: list[Job] = []
        self.machines: list[Instance] = []
        self.moves: list[InstanceMove] = []
        self.causes = self._causes()
        self.lost, self.again = self._attempts()
        snapshot, rules = self._snapshot(), self._rules()
        self.view = ExampleView(snapshot, rules)
        self.view.reasons = plan(snapshot, rules, now).blocked
        self.view.scored = _scored()

    def earlier(self, seconds: float) -> datetime:
        return self.now - timedelta(seconds=seconds)

    async def opened(self) -> "WhySite":
        store = self.view.store
        await store.open()
        await store.acquire_lease("test")
        failed = instance(40, self.earlier(30), S.TERMINATED, pool=PoolName("broken"), ending=EndReason.SELF_ENDED)
        gone = [self._gone(), replace(failed, provider_id=ProviderId("i-0broken")), *self.machines]
        await store.commit(
            Changes(
                jobs=[*self.jobs, self.lost],
                instances=gone,
                moves=self.moves,
                ledger=self._ledger(),
                interruptions=[self._taken()],
            )
        )
        return self

    # ------------------------------------------------------------------ jobs

    def _causes(self) -> dict[str, Cause]:
        at = self.earlier(90)
        unserved = job(1, at, pool=None, labels=("arm64", "linux"), name="no such label")
        secret = job(2, at, pool=None, labels=("linux",), repo="acme/secret", name="no such repo")
        held = _waiting(3, "gpu", at)
        busy = _waiting(30, "gpu", self.earlier(300), repo="acme/vision", state=JobState.RUNNING)
        self._runs(busy, 30)
        for number in (31, 32):
            taken = _waiting(number, "shared", self.earlier(300), repo="acme/vision", state=JobState.RUNNING)
            self._runs(taken, number)
        self.jobs.append(_waiting(33, "shared", self.earlier(60), repo="acme/small"))
        online = _waiting(8, "linux", at)
        runner = instance(8, self.earlier(12), S.IDLE, demand=demand_of(online), runner_name="acme-ci--i-0008")
        self.machines.append(runner)
        lost = _waiting(9, "linux", self.earlier(400), state=JobState.LOST, started_at=self.earlier(300))
        spilled = _waiting(10, "spilled", at)
        bought = instance(10, self.earlier(20), S.LAUNCHED, pool=PoolName("spilled"), capacity_pool=ON_DEMAND)
        self.machines.append(bought)
        self._moved(bought.id, bought.created_at, S.REQUESTED, BOUGHT)
        causes = {
            "label": Cause(job=unserved, says=("arm64", "linux"), starts="not known", advice="add arm64 to the labels"),
            "repo": Cause(job=secret, says=("does not serve acme/secret",), advice="Add acme/secret to the repos of"),
            "cap": Cause(
                job=held, says=("max of 1 instances", "acme/vision (1)"), starts="jobs that run now have ended"
            ),
            "share": Cause(
                job=_waiting(14, "shared", at, repo="acme/vision"),
                says=("max of 2 instances", "acme/vision has 2 machines of pool shared and waits for its turn behind"),
                starts="when jobs that run now have ended",
            ),
            "capacity": Cause(
                job=_waiting(4, "dry", at), says=("refuse", "no capacity", "next try is in"), starts="at the next try"
            ),
            "quota": Cause(
                job=_waiting(5, "quota", at), says=("quota", "MaxSpotInstanceCountExceeded"), starts="at the next try"
            ),
            "budget": Cause(
                job=_waiting(6, "slow", at, forge=SLOW), says=("registration budget of slow-forge is used up",)
            ),
            "boots": Cause(
                job=_waiting(7, "broken", at),
                says=("machines of pool broken do not come up", "/opt/runner/run.sh: not found"),
                starts="have to come up first",
                advice="The last one to fail was i-0028: autoscaler why i-0028, and its console at aws (i-0broken) may",
            ),
            "assigned": Cause(job=online, says=("has been online for", "github has not assigned"), starts="Starts"),
            "run": Cause(
                job=lost, says=("queued again once the rest of its run has ended, in about",), starts="Starts in about"
            ),
            "spilled": Cause(
                job=spilled, says=("booting", "on demand since", "predicted breach 0.83 on spot"), starts="Starts"
            ),
            "paused": Cause(
                job=_waiting(11, "paused", at),
                says=("operator paused pool paused",),
                starts="operator has to resume",
                advice="autoscaler resume paused",
            ),
            "draining": Cause(
                job=_waiting(12, "draining", at),
                says=("operator is draining pool draining",),
                advice="autoscaler resume draining",
            ),
            "held": Cause(job=_waiting(13, "held", at), says=("cannot launch now", "credentials have expired")),
        }
        self.jobs += [cause.job for cause in causes.values()]
        return causes

    def _runs(self, row: Job, number: int) -> None:
        machine = instance(number, self.earlier(200), S.BUSY, pool=row.pool, job=row.id, repo=row.repo)
        self.machines.append(machine)
        self.jobs.append(replace(row, started_at=self.earlier(200), instance=machine.id))

    def _attempts(self) -> tuple[Job, Job]:
        """A job whose machine was taken, and the one that runs its work again."""
        lost = replace(
            job(
                20, self.earlier(500), JobState.REQUEUED, run_id="77", name="integration", started_at=self.earlier(450)
            ),
            finished_at=self.earlier(300),
            instance=InstanceId("i-0014"),
            reason="1 job of the run lost its machine",
        )
        again = replace(
            job(21, self.earlier(280), JobState.RUNNING, run_id="77", name="integration", started_at=self.earlier(200)),
            attempt=2,
            predecessor=lost.id,
        )
        self.jobs.append(again)
        return lost, again

    # ------------------------------------------------------------------ machines

    def _gone(self) -> Instance:
        return instance(20, self.earlier(300), S.TERMINATED, job=self.lost.id, is_job_lost=True)

    def _taken(self) -> Interruption:
        return Interruption(
            instance=self._gone().id,
            provider=SPOT.provider,
            pool=PoolName("linux"),
            capacity_pool=SPOT,
            noticed_at=self.earlier(420),
            sources=("agent", "queue"),
            is_announced=True,
            reclaim_at=self.earlier(300),
            cutoff_at=self.earlier(310),
            ended_at=self.earlier(300),
            job=self.lost.id,
        )

    def _moved(self, name: InstanceId, at: datetime, state: InstanceState, cause: str) -> None:
        self.moves.append(InstanceMove(instance=name, at=at, from_state=None, to_state=state, cause=cause))

    def _ledger(self) -> list[LedgerEntry]:
        lines = (
            (305, "tell", self.lost.id, "a check run on its commit says that its machine was taken back", "done"),
            (290, "requeue", self.lost.id, "1 job of the run lost its machine", "requeued"),
            (120, "error_budget", "linux", "interruptions hurt 11 % of the jobs of the last hour", "spot share 50 %"),
        )
        return [
            LedgerEntry(
                at=self.earlier(age),
                actor="autoscaler",
                action=action,
                subject=subject,
                pool="linux",
                reason=reason,
                outcome=outcome,
            )
            for age, action, subject, reason, outcome in lines
        ]

    # ------------------------------------------------------------------ the world around them

    def _rules(self) -> Rules:
        return rules_of(
            _pool("linux", cancels_unservable=False, error_budget=0.05),
            _pool("gpu", max=1),
            _pool("shared", max=2),
            _pool("dry"),
            _pool("quota"),
            _pool("slow", forges=frozenset({SLOW})),
            _pool("broken"),
            replace(_pool("spilled"), spill_enabled=True),
            _pool("paused"),
            _pool("draining"),
            _pool("held"),
        )

    def _snapshot(self) -> Snapshot:
        dry, limited = _offering("m5.dry"), _offering("m6.limited")
        until = self.now + timedelta(seconds=75)
        names = [PoolName(name) for name in ("linux", "gpu", "shared", "slow", "broken", "paused", "draining", "held")]
        predicted = Prediction(wait_s=95, breach=0.31, target_s=60)
        jobs = [replace(row, prediction=predicted) if row.state is JobState.QUEUED else row for row in self.jobs]
        lost = self.causes["run"].job
        return snapshot_of(
            jobs,
            self.machines,
            offerings={
                **dict.fromkeys(names, (OFFERING,)),
                PoolName("dry"): (dry,),
                PoolName("quota"): (limited,),
                PoolName("spilled"): (OFFERING, replace(OFFERING, capacity_pool=ON_DEMAND, price_usd_hour=0.1)),
            },
            forges={GITHUB: _forge(GITHUB, left=180, refill=3), SLOW: _forge(SLOW, left=0, refill=0.01)},
            complete=frozenset({f"{GITHUB}/jobs", f"{SLOW}/jobs", str(SPOT.provider)}),
            cooldowns={
                dry.capacity_pool: Cooldown(
                    capacity_pool=dry.capacity_pool, until=until, failures=3, reason="no capacity for m5.dry"
                )
            },
            scope_cooldowns=(
                ScopeCooldown(
                    provider=SPOT.provider,
                    scope=CapacityScope(machine_type="m6.limited"),
                    until=until,
                    failures=1,
                    reason="MaxSpotInstanceCountExceeded",
                ),
            ),
            spoilage={
                PoolName("broken"): Spoilage(
                    count=3, until=until, reason="its agent ended: runner_failed 127: /opt/runner/run.sh: not found"
                )
            },
            controls={PoolName("paused"): PoolControl.PAUSED, PoolName("draining"): PoolControl.DRAINING},
            held_back={(PoolName("held"), SPOT.provider): "launching at aws fails: credentials have expired"},
            retry_after={f"launch/held/{SPOT.provider}": until},
            arrivals={(PoolName(name), SPOT.provider): ARRIVALS for name in ("linux", "dry", "gpu", "spilled")},
            run_ends={(lost.forge, lost.repo, lost.run_id): self.now + timedelta(minutes=4)},
            hours={row.work: 0.1 for row in jobs},
            burns={PoolName("linux"): Burn(share=2.4, spot_share=0.5, reason="11 % of the last hour's jobs were hurt")},
            on_demand_today_usd={PoolName("spilled"): 1.25},
        )


ARRIVALS = Arrivals(seconds=tuple(30.0 + 5 * n for n in range(20)))


def _forge(name: ForgeName, *, left: float, refill: float) -> ForgeView:
    return ForgeView(name=name, traits=TRAITS, is_healthy=True, registrations_left=left, registrations_per_s=refill)


def _scored() -> tuple[Calibration, ...]:
    jobs = (9000, 700, 320, 200, 150, 120, 110, 90, 130, 400)
    observed = (0.02, 0.14, 0.27, 0.33, 0.47, 0.52, 0.66, 0.71, 0.86, 0.97)
    bins = tuple(
        ScoredBin(predicted=0.05 + 0.1 * n, observed=share, jobs=count)
        for n, (count, share) in enumerate(zip(jobs, observed, strict=True))
    )
    of_all = Calibration(pool=None, jobs=sum(jobs), brier=0.041, bins=bins)
    return of_all, replace(of_all, pool=PoolName("linux"))
