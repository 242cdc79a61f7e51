"""Turn facts into passive moves of rows, and rows into the snapshot that plan sees.

Owns every passive move of `states` for instances; jobs are in `observe_jobs`. A fact that is already implied by the
row's state is no news and changes nothing: late, doubled and reordered facts are normal. Nothing here calls a forge,
a cloud or the store; the caller flushes the rows.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, assert_never

import structlog

from autoscaler.end_lines import ended_line
from autoscaler.experience import Experience
from autoscaler.facts import (
    AgentNoticed,
    AgentReported,
    AgentSaidHello,
    AssignmentAsked,
    ClaimDisputed,
    Fact,
    HookEnded,
    InstancesListed,
    JobRead,
    JobsListed,
    LaunchAnswered,
    ListingFailed,
    MachinesDescribed,
    NoticeArrived,
    RunnersListed,
    WebhookArrived,
)
from autoscaler.forge_views import forge_view
from autoscaler.lessons import Lessons
from autoscaler.live import LiveRows
from autoscaler.model import (
    Demand,
    EndReason,
    Instance,
    InstanceState,
    OrphanInstance,
    OrphanRunner,
    Rules,
    Snapshot,
)
from autoscaler.observe_agents import AgentObserver
from autoscaler.observe_jobs import JobObserver
from autoscaler.observe_losses import LossObserver
from autoscaler.outbox import Outbox
from autoscaler.sightings import Sightings
from autoscaler.spi import (
    CloudInstance,
    Forge,
    ForgeName,
    ForgeRunner,
    InstanceId,
    MachineState,
    ProviderId,
    ProviderName,
    RunnerId,
)
from autoscaler.states import REGISTERED_STATES, end_reason_said

log = structlog.get_logger()

LISTING_GRACE = timedelta(seconds=10)
"""Clouds list eventually: a machine younger than this when the listing began may be missing from it."""
COMPLETE_SIGHTINGS = 2
HOLDER_FORGOTTEN = timedelta(hours=2)
ADOPTED_SILENCE = timedelta(hours=24)
"""No runner is spared for the sake of an adopted machine that is older and silent: its agent, where it has one, says
hello again within minutes, and its job, where it has one, is over at every forge by then or shows its runner busy."""
ADOPTION_AWAITED = timedelta(hours=1)
"""No runner is spared for longer after the start for machines that a cloud has not listed yet: a cloud that never
lists must not keep dead runners at the forges for ever."""

_S = InstanceState


class Observer:
    """Consumes facts. In a new store the first complete listing of each provider adopts: unknown machines of our name
    become rows. Which listings are still to come is kept in the store, so that a crash before one sweeps nothing."""

    def __init__(
        self,
        rows: LiveRows,
        sightings: Sightings,
        jobs: JobObserver,
        losses: LossObserver,
        *,
        experience: Experience,
        lessons: Lessons,
        outbox: Outbox,
        runner_prefix: str,
        providers: Collection[ProviderName],
    ) -> None:
        self._rows = rows
        self._seen = sightings
        self._jobs = jobs
        self.experience = experience
        self.lessons = lessons
        self._losses = losses
        self._outbox = outbox
        self._runner_prefix = runner_prefix
        if rows.is_new_store:
            for provider in providers:
                rows.set_setting(f"adopting/{provider}", "yes")
        self._adopting = {provider for provider in providers if f"adopting/{provider}" in rows.settings}
        self._agents = AgentObserver(rows, sightings, jobs, losses)
        self._began_at: datetime | None = None
        self._rules: Rules | None = None
        self.refused = 0

    def consume(self, facts: Sequence[Fact], rules: Rules, now: datetime) -> None:
        """Take facts in. One that breaks a rule of ours is a bug, but never a reason to forget the others: it is
        logged and counted, and the next listing shows what it would have said."""
        self._began_at = self._began_at or now
        self._rules = rules
        self.experience.keep(now, half_life=rules.evidence_half_life)
        for fact in facts:
            try:
                self._consume(fact, rules, now)
            except Exception:
                self.refused += 1
                log.exception("fact_refused", fact=type(fact).__name__)
        self._losses.settle(now)
        self._outbox.follow(rules, now)
        self.lessons.take_in(rules, now)  # clears the news

    def _consume(self, fact: Fact, rules: Rules, now: datetime) -> None:
        match fact:
            case WebhookArrived():
                self._jobs.webhook(fact, rules, now)
                self.lessons.runs_told(fact.webhook.runs)
            case JobsListed():
                if fact.is_full:
                    self._note_completeness(f"{fact.forge}/jobs", fact.listing.is_complete)
                    if fact.listing.is_complete:
                        self._seen.jobs_listed[fact.forge] = fact.started_at
                self._jobs.listed(fact, rules, now)
            case JobRead():
                self._jobs.read(fact, rules, now)
            case RunnersListed():
                self._runners_listed(fact, now)
            case InstancesListed():
                self._instances_listed(fact, now)
            case ListingFailed():
                self._seen.complete.discard(fact.target)
            case LaunchAnswered():
                self._launch_answered(fact, now)
            case AgentSaidHello():
                self._agents.hello(fact, now)
            case ClaimDisputed():
                self._seen.disputed.add(fact.instance)
            case AssignmentAsked():
                self._agents.assignment_asked(fact, now)
            case AgentReported():
                self._agents.reported(fact, now)
            case AgentNoticed():
                self._losses.agent_noticed(fact, now)
            case HookEnded():
                self._losses.hook_ended(fact, now)
            case NoticeArrived():
                self._losses.notice_arrived(fact, now)
            case MachinesDescribed():
                self._machines_described(fact, now)
            case _:
                assert_never(fact)

    def _note_completeness(self, target: str, is_complete: bool) -> None:
        if is_complete:
            self._seen.complete.add(target)
        else:
            self._seen.complete.discard(target)

    # ------------------------------------------------------------------ launches and listings of clouds

    def _launch_answered(self, fact: LaunchAnswered, now: datetime) -> None:
        self.experience.launch_answered(fact, now)
        if fact.is_unknown:
            return
        waiting = [row for row in self._rows.of_token(fact.token) if row.provider_id is None]
        made = fact.result.instances if fact.result is not None else ()
        fresh = [m for m in made if self._rows.by_provider_id(m.provider, m.provider_id) is None]
        for row, machine in zip(waiting, fresh, strict=False):
            self._bind(row, machine, now, cause="the cloud launched it")
        refused = fact.error or "the cloud launched fewer machines than asked"
        for row in waiting[len(fresh) :]:
            if row.state is _S.REQUESTED:
                self._end(row, now, cause=refused, ending=EndReason.REFUSED)

    def _bind(self, row: Instance, machine: CloudInstance, now: datetime, *, cause: str) -> None:
        """A row learns which machine it is; one that is going already learns it too, so that it can be ended."""
        fields: dict[str, Any] = {
            "provider_id": machine.provider_id,
            "capacity_pool": machine.capacity_pool,
            # A cloud that does not know its prices yet lists them as nothing: what was committed goes on counting.
            "price_usd_hour": machine.price_usd_hour or row.price_usd_hour,
            "on_demand_usd_hour": self._seen.on_demand_price(machine.capacity_pool),
        }
        launched_at = min(max(machine.launched_at, row.created_at), now)
        until = now if row.state is _S.REQUESTED else row.since
        fields["launched_at"] = launched_at
        fields["boot_us"] = max(0, (until - launched_at) // timedelta(microseconds=1))
        self._seen.bound_at[row.id] = now
        if machine.address:
            self._seen.addresses[row.id] = machine.address
        if row.state is _S.REQUESTED:
            self._rows.move(row, _S.LAUNCHED, now=now, cause=cause, **fields)
        else:
            self._rows.amend(row, **fields)

    def _instances_listed(self, fact: InstancesListed, now: datetime) -> None:
        listed: set[InstanceId] = set()
        orphans: dict[tuple[ProviderName, ProviderId], OrphanInstance] = {}
        for machine in fact.instances:
            row = self._rows.by_provider_id(machine.provider, machine.provider_id) or self._adopt(machine, now)
            if row is not None:
                listed.add(row.id)
                self._machine_shown(row, machine, fact.started_at, now)
            elif fact.is_complete and machine.state in (MachineState.PENDING, MachineState.RUNNING):
                key = (machine.provider, machine.provider_id)
                before = self._seen.orphan_instances.get(key)
                count = 1 if before is None else before.sightings + 1
                orphans[key] = OrphanInstance(instance=machine, sightings=count)
        if not fact.is_complete:
            return
        self._seen.complete.add(fact.provider)
        kept = {key: orphan for key, orphan in self._seen.orphan_instances.items() if key[0] != fact.provider}
        self._seen.orphan_instances = kept | orphans
        self._note_absent(fact, listed, now)
        if fact.provider in self._adopting:
            self._adopting.discard(fact.provider)
            self._rows.set_setting(f"adopting/{fact.provider}", "")

    def _machine_shown(self, row: Instance, machine: CloudInstance, started_at: datetime, now: datetime) -> None:
        self._losses.listed(row, machine, now)
        self._seen.left_out.pop(row.id, None)
        if machine.address:
            self._seen.addresses[row.id] = machine.address
        if machine.state is MachineState.RUNNING:
            self._seen.shown_up[row.id] = started_at
        elif machine.state is MachineState.TERMINATED:
            cause = f"the cloud says it ended {machine.end_detail}".strip()
            ending = EndReason.SELF_ENDED if machine.ended_by_itself else None
            self._end(row, now, cause=cause, ending=ending)

    def _machines_described(self, fact: MachinesDescribed, now: datetime) -> None:
        """A machine whose agent is silent and that its cloud calls terminated, or leaves out twice, was taken."""
        shown = {machine.provider_id: machine for machine in fact.instances}
        for id_ in sorted(fact.asked):
            row = self._rows.by_provider_id(fact.provider, id_)
            if row is None:
                continue
            machine = shown.get(id_)
            is_gone = machine is None or (machine.state is MachineState.TERMINATED and not machine.ended_by_itself)
            if machine is None and not self._is_left_out_again(row, fact.started_at):
                continue
            if is_gone and id_ in fact.silent and not self._is_outworn(row, now):
                self._losses.found_gone(row, now)
            if machine is None:
                self._end(row, now, cause="its cloud, asked for it twice, does not know it")
            else:
                self._machine_shown(row, machine, fact.started_at, now)

    def _is_left_out_again(self, row: Instance, started_at: datetime) -> bool:
        """Whether an answer without a machine means that it is gone: clouds know young machines eventually."""
        if self._seen.bound_at.get(row.id, row.created_at) > started_at - LISTING_GRACE:
            return False
        self._seen.left_out[row.id] = self._seen.left_out.get(row.id, 0) + 1
        return self._seen.left_out[row.id] >= COMPLETE_SIGHTINGS

    def _adopt(self, machine: CloudInstance, now: datetime) -> Instance | None:
        """The row that waits for a machine of this token, or, into a new store, a row of its own."""
        if machine.state is MachineState.TERMINATED:
            return None
        for row in self._rows.of_token(machine.token):
            if row.provider_id is None:
                self._bind(row, machine, now, cause="the cloud lists it with our token")
                return self._rows.instances[row.id]
        if machine.provider not in self._adopting:
            return None
        row = Instance(
            id=InstanceId(f"adopted-{machine.provider_id}"),
            pool=machine.pool,
            provider=machine.provider,
            token=machine.token,
            state=_S.LAUNCHED,
            since=now,
            created_at=machine.launched_at,
            capacity_pool=machine.capacity_pool,
            price_usd_hour=machine.price_usd_hour,
            on_demand_usd_hour=self._seen.on_demand_price(machine.capacity_pool),
            provider_id=machine.provider_id,
            adopted=True,
        )
        return self._rows.add_instance(row, cause="adopted: the store is new and the cloud lists it under our name")

    def _note_absent(self, fact: InstancesListed, listed: set[InstanceId], now: datetime) -> None:
        """Rows that two complete listings in a row do not show are gone."""
        oldest = fact.started_at - LISTING_GRACE
        for row in list(self._rows.instances.values()):
            if row.provider != fact.provider:
                continue
            never_shown = row.provider_id is None and row.state is not _S.TERMINATING
            known_at = self._seen.bound_at.get(row.id, row.created_at)
            if row.id in listed or known_at > oldest or never_shown:
                self._seen.absences.pop(row.id, None)
                continue
            absences = self._seen.absences.get(row.id, 0) + 1
            self._seen.absences[row.id] = absences
            if absences >= COMPLETE_SIGHTINGS:
                self._end(row, now, cause="absent from two complete listings")

    def _end(self, row: Instance, now: datetime, *, cause: str, ending: EndReason | None = None) -> None:
        """The machine is gone. What it was doing is settled with the forge, never guessed."""
        said = self._seen.ending.get(row.id)
        if said is None and ending is None:
            self._losses.ended_without_a_word(row, now)
        taken = self._rows.interruptions.get(row.id)
        is_taken = taken is not None and said is None
        # Neither we nor its agent ended it. Only such an end is free where clouds ask nothing for what they take early.
        by_cloud = is_taken and ending is not EndReason.SELF_ENDED and row.state is not _S.TERMINATING
        if taken is not None and taken.is_game_day and not taken.is_announced:
            by_cloud = False  # its cloud ended it because it was asked to
        if said is not None:
            ending = end_reason_said(said)
        elif is_taken:
            ending = EndReason.INTERRUPTED
        elif self._is_outworn(row, now):
            ending = EndReason.MAX_LIFETIME
        if taken is not None and ending is EndReason.INTERRUPTED:
            ending = taken.end_reason
        ended = self._rows.move(
            row, _S.TERMINATED, now=now, cause=cause, ending=ending or EndReason.VANISHED, is_ended_by_cloud=by_cloud
        )
        heard = self._losses.heard_at(row.id) if said is None else None
        self._rows.note(ended_line(row, ended, now, cause=cause, said=said or "", interruption=taken, heard_at=heard))
        hours = (now - row.created_at).total_seconds() / 3600
        if row.provider_id is not None and row.price_usd_hour:
            self._rows.spend(row, hours * row.price_usd_hour, now=now)
        self.experience.machine_ended(ended, now)
        self._losses.machine_ended(ended, now)
        self._jobs.machine_ended(ended, now, ran_to_end=said == "job_done")
        self._seen.forget(row.id)

    def _is_outworn(self, row: Instance, now: datetime) -> bool:
        """Whether it has got so old that its own timer, or its cloud's, ends it: nobody took it then."""
        pool = self._rules.pools.get(row.pool) if self._rules is not None else None
        return pool is not None and now >= (row.launched_at or row.created_at) + pool.max_lifetime

    # ------------------------------------------------------------------ runners

    def _runners_listed(self, fact: RunnersListed, now: datetime) -> None:
        self._seen.complete.add(fact.forge)
        self._seen.runners_listed[fact.forge] = fact.started_at
        orphans: dict[tuple[ForgeName, RunnerId], OrphanRunner] = {}
        holders = self._holder_names(now)
        for runner in fact.runners:
            row = self._rows.by_runner(runner.ref.name)
            if row is not None:
                self._runner_seen(row, fact.forge, runner, now)
            elif runner.ref.name not in holders and not self._may_be_adopted(now):
                key = (fact.forge, runner.ref.runner_id)
                before = self._seen.orphan_runners.get(key)
                count = 1 if before is None else before.sightings + 1
                orphans[key] = OrphanRunner(
                    forge=fact.forge, runner=runner.ref, is_busy=runner.is_busy, sightings=count
                )
        kept = {key: orphan for key, orphan in self._seen.orphan_runners.items() if key[0] != fact.forge}
        self._seen.orphan_runners = kept | orphans

    def _holder_names(self, now: datetime) -> set[str]:
        return {name for name, refreshed in self._seen.holders.values() if refreshed + HOLDER_FORGOTTEN > now}

    def _may_be_adopted(self, now: datetime) -> bool:
        """A machine adopted into a new store, or still to be, has not yet told which runner it runs."""
        if self._adopting and self._began_at is not None and now < self._began_at + ADOPTION_AWAITED:
            return True
        return any(
            row.adopted and not row.runner_name and row.state is _S.LAUNCHED and now < row.created_at + ADOPTED_SILENCE
            for row in self._rows.instances.values()
        )

    def _runner_seen(self, row: Instance, forge: ForgeName, runner: ForgeRunner, now: datetime) -> None:
        if row.runner_id is None:
            demand = row.demand or Demand(forge=forge, scope=runner.ref.scope, group="", labels=runner.labels)
            row = self._rows.amend(row, runner_id=runner.ref.runner_id, demand=demand)
        if runner.is_busy and row.state in REGISTERED_STATES:
            self._rows.move(row, _S.BUSY, now=now, cause="the forge lists its runner as busy")
        elif runner.is_online and row.state is _S.REGISTERING:
            self._rows.move(row, _S.IDLE, now=now, cause="the forge lists its runner as online")

    # ------------------------------------------------------------------ the snapshot

    def snapshot(
        self, now: datetime, *, forges: Mapping[ForgeName, Forge], unhealthy: set[str], handed: set[InstanceId]
    ) -> Snapshot:
        """The world as of now. `handed` are the machines whose registration is minted or being minted."""
        seen = self._seen
        seen.retry_after = {key: at for key, at in seen.retry_after.items() if at > now}
        registering = {
            id_
            for id_ in seen.asking
            if id_ not in handed and (row := self._rows.instances.get(id_)) and row.state is _S.REGISTERING
        }
        seen.asking.intersection_update(self._rows.instances.keys())
        return Snapshot(
            jobs=self._rows.jobs,
            instances=self._rows.instances,
            forges={
                name: forge_view(forge, seen, now, is_healthy=name not in unhealthy) for name, forge in forges.items()
            },
            offerings=seen.offerings,
            complete=frozenset(seen.complete),
            jobs_listed=dict(seen.jobs_listed),
            cooldowns=seen.cooldowns,
            scope_cooldowns=tuple(seen.scope_cooldowns.values()),
            evidence=self.experience.evidence(now),
            expected_life_h=self.experience.expected_life_h(),
            controls=self._rows.controls,
            held_back=dict(seen.held_back),
            spoilage=dict(seen.spoilage),
            orphan_instances=tuple(seen.orphan_instances.values()),
            orphan_runners=tuple(seen.orphan_runners.values()),
            sealed=frozenset(seen.sealed),
            started=frozenset(seen.started),
            secretless=frozenset(registering),
            disputed=frozenset(seen.disputed),
            releasing=dict(seen.releasing),
            ending=dict(seen.ending),
            doubtful=self._jobs.doubtful(now),
            retry_after=seen.retry_after,
            spent_today_usd=self._rows.spent_today(now),
            on_demand_today_usd=self._rows.on_demand_today(now),
            interruptions=self._rows.interruptions,
            reclaimed_free=self._rows.reclaimed_free,
            hours=self.lessons.run_times.hours,
            run_sizes=self.lessons.run_sizes.sizes,
            arrivals=self.lessons.arrivals.shown,
            foreseen=self.lessons.stages.foreseen,
            run_ends=self.lessons.stages.run_ends,
            tellings=self._outbox.tellings(),
            burns=self.lessons.budgets.burns,
            unserved_since=self._jobs.unserved_since,
        )
