"""Why a job waits: one sentence for each thing that can be in the way, and the job's life in order."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autoscaler.model import (
    Blocked,
    Caps,
    Cooldown,
    ForgeView,
    InstanceMove,
    InstanceState,
    Job,
    JobState,
    LedgerEntry,
    PoolControl,
    Rules,
    Snapshot,
)
from autoscaler.spi import Conclusion, ForgeTraits, RunnerId
from autoscaler.why import why
from autoscaler.why_outlook import Outlook
from autoscaler.why_start import expected_machines
from autoscaler.why_story import Story, timeline
from autoscaler.why_unserved import nearest_pool
from autoscaler.why_words import ago
from tests.admin_world import GITHUB, GPU, LINUX, OFFERING, SPOT, demand_of, instance, job, pool, rules_of, snapshot_of

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULES = rules_of(pool(LINUX, "linux", "x64"), pool(GPU, "linux", "gpu"))
TRAITS = ForgeTraits(seals_runners=False, removes_finished_runners=True, needs_queue_holder=False)
BUDGET = ForgeView(name=GITHUB, traits=TRAITS, is_healthy=True, registrations_left=180, registrations_per_s=3)


def earlier(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


WAITING = job(1, earlier(30))


def ask(
    row: Job = WAITING, snapshot: Snapshot | None = None, rules: Rules = RULES, blocked: Sequence[Blocked] = ()
) -> str:
    return why(row, Outlook(snapshot or offered(row), rules, blocked, NOW))


def offered(*jobs: Job, **changes: Any) -> Snapshot:
    return snapshot_of(jobs, **{"offerings": {LINUX: (OFFERING,)}, "forges": {GITHUB: BUDGET}, **changes})


def test_a_missing_label_is_named_with_the_nearest_pool() -> None:
    row = replace(WAITING, pool=None, labels=("arm64", "linux"))
    assert ask(row) == "No pool has all of its labels: the nearest, gpu, lacks arm64."
    near = nearest_pool(row, RULES)
    assert near is not None
    assert (near.pool, near.missing, near.is_repo_served) == (GPU, ("arm64",), True)


def test_a_repo_that_no_pool_serves_is_named() -> None:
    row = replace(WAITING, pool=None, repo="acme/secret")
    assert ask(row) == "Pool linux has its labels but does not serve acme/secret."


def test_missing_label_and_unserved_repo_are_both_said() -> None:
    row = replace(WAITING, pool=None, repo="other/app", labels=("arm64", "gpu", "linux"))
    assert ask(row) == "No pool has all of its labels: the nearest, gpu, lacks arm64 and does not serve other/app."


def test_a_pool_that_serves_the_repo_is_nearer_than_one_that_has_the_labels() -> None:
    rules = rules_of(pool(LINUX, "linux", "x64", repos=("acme/*",)), pool(GPU, "gpu", "linux", repos=("acme/ml",)))
    row = replace(WAITING, pool=None, repo="acme/api", labels=("gpu", "linux"))
    assert ask(row, rules=rules) == (
        "No pool that serves acme/api has all of its labels: the nearest, linux, lacks gpu; "
        "pool gpu has it but does not serve acme/api."
    )


def test_a_forge_without_any_pool_is_said() -> None:
    assert ask(replace(WAITING, pool=None), rules=rules_of()) == "No pool serves github."


def test_habitual_and_binding_labels_are_never_missing() -> None:
    near = nearest_pool(replace(WAITING, labels=("linux", "run-1001", "self-hosted", "x64")), RULES)
    assert near is not None
    assert near.missing == ()


def test_what_intake_found_missing_is_said_as_a_sentence() -> None:
    assert ask(replace(WAITING, pool=None, unserved="no pool serves acme/x")) == "No pool serves acme/x."


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (InstanceState.IDLE, "Runner r-1 has been online for 12 s; github has not assigned the job to it yet."),
        (InstanceState.REGISTERING, "Its runner on machine i-0001 has been registering at github for 12 s."),
    ],
)
def test_a_registered_runner_is_what_the_job_waits_for(state: InstanceState, sentence: str) -> None:
    row = instance(1, earlier(12), state, demand=demand_of(WAITING), runner_name="r-1", runner_id=RunnerId("9"))
    assert ask(snapshot=offered(WAITING, instances=[row])) == sentence


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (InstanceState.READY, "Machine i-0001 has been up for 12 s and gets its runner's registration next."),
        (
            InstanceState.LAUNCHED,
            "Machine i-0001 has been booting for 12 s (m7i.large in eu-central-1a); it may take up to 5 min.",
        ),
        (
            InstanceState.REQUESTED,
            "A machine was asked of aws 12 s ago (m7i.large in eu-central-1a); no answer yet.",
        ),
    ],
)
def test_a_machine_on_its_way_is_what_the_job_waits_for(state: InstanceState, sentence: str) -> None:
    row = instance(1, earlier(12), state)
    assert ask(snapshot=offered(WAITING, instances=[row])) == sentence


def test_the_oldest_job_gets_the_machine_and_the_next_one_does_not() -> None:
    younger = job(2, earlier(10))
    row = instance(1, earlier(5), InstanceState.LAUNCHED)
    snapshot = offered(younger, WAITING, instances=[row])
    assert expected_machines(snapshot) == {WAITING.id: row}
    assert "next tick" in ask(younger, snapshot)


def test_a_runner_registered_for_other_labels_is_not_expected() -> None:
    row = instance(1, earlier(5), InstanceState.IDLE, demand=replace(demand_of(WAITING), labels=("linux",)))
    assert expected_machines(offered(WAITING, instances=[row])) == {}


def test_a_busy_machine_is_nobodys_hope() -> None:
    row = instance(1, earlier(5), InstanceState.BUSY)
    assert expected_machines(offered(WAITING, instances=[row])) == {}


@pytest.mark.parametrize(
    ("control", "words"),
    [(PoolControl.PAUSED, "An operator paused pool linux"), (PoolControl.DRAINING, "An operator is draining pool")],
)
def test_an_operators_hand_is_named(control: PoolControl, words: str) -> None:
    assert words in ask(snapshot=offered(WAITING, controls={LINUX: control}))


def test_a_draining_pools_idle_runner_is_not_promised() -> None:
    row = instance(1, earlier(12), InstanceState.IDLE, demand=demand_of(WAITING))
    snapshot = offered(WAITING, instances=[row], controls={LINUX: PoolControl.DRAINING})
    assert "draining" in ask(snapshot=snapshot)


def test_a_provider_that_is_held_back_gives_its_reason() -> None:
    said = ask(snapshot=offered(WAITING, held_back={(LINUX, SPOT.provider): "aws: credentials have expired"}))
    assert said == "Pool linux cannot launch now: aws: credentials have expired."


def test_the_plans_own_reason_is_said_as_a_sentence() -> None:
    blocked = (
        Blocked(pool=GPU, jobs=1, reason="other"),
        Blocked(pool=LINUX, jobs=2, reason="the day's money is spent"),
    )
    assert ask(blocked=blocked) == "The day's money is spent."


def test_the_pools_limit_is_named() -> None:
    row = instance(1, earlier(5), InstanceState.BUSY)
    rules = rules_of(pool(LINUX, "linux", "x64", max=1))
    said = ask(snapshot=offered(WAITING, instances=[row]), rules=rules)
    assert said == "Pool linux is at its limit: 1 of max 1 machines live, held by machines without a job yet (1)."


def test_the_deployments_limit_is_named() -> None:
    row = instance(1, earlier(5), InstanceState.BUSY, pool=GPU)
    rules = rules_of(*RULES.pools.values(), caps=Caps(instances=1))
    said = ask(snapshot=offered(WAITING, instances=[row]), rules=rules)
    assert said == "The deployment is at its limit: 1 of 1 machines live, held by gpu (1)."


def test_cooling_offerings_say_until_when() -> None:
    cooling = Cooldown(capacity_pool=SPOT, until=earlier(-75), failures=1, reason="no capacity")
    said = ask(snapshot=offered(WAITING, cooldowns={SPOT: cooling}))
    assert said == "The only offering was refused lately (no capacity); the next try is in 1 min 15 s."


def test_a_cooldown_that_is_over_is_no_reason() -> None:
    over = Cooldown(capacity_pool=SPOT, until=earlier(1), failures=1, reason="no capacity")
    assert "refused" not in ask(snapshot=offered(WAITING, cooldowns={SPOT: over}))


def test_a_shape_that_nobody_offers_is_said() -> None:
    assert "offers a machine of its shape" in ask(snapshot=offered(WAITING, offerings={}))


def test_an_empty_registration_budget_is_said() -> None:
    spent = {GITHUB: replace(BUDGET, registrations_left=0.4)}
    assert ask(snapshot=offered(WAITING, forges=spent)).startswith("The registration budget of github is used up")


def test_a_forge_that_is_down_is_said() -> None:
    down = {GITHUB: replace(BUDGET, is_healthy=False)}
    assert "no runner can be registered" in ask(snapshot=offered(WAITING, forges=down))


def test_a_pool_that_is_gone_is_said() -> None:
    assert "no longer configured" in ask(rules=rules_of())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"state": JobState.RUNNING, "started_at": earlier(90), "runner_name": "r-1"},
            "It has been running on r-1 for 1 min 30 s.",
        ),
        (
            {"state": JobState.LOST, "reason": "spot reclaim", "retry_at": earlier(-20)},
            "Its machine was interrupted (spot reclaim); it is queued again once the rest of its run has ended; next "
            "try in 20 s.",
        ),
        (
            {"state": JobState.REQUEUED, "successor": "github:9"},
            "Its machine was interrupted, and it was queued again as github:9.",
        ),
        ({"state": JobState.DONE, "conclusion": Conclusion.FAILURE}, "It is done: failure."),
        ({"state": JobState.ABANDONED, "reason": "3 attempts"}, "It was given up (3 attempts)."),
        (
            {"state": JobState.ABANDONED, "reason": "opted_out: label no-requeue"},
            "It is not run again by itself (label no-requeue): run it again by hand if it may.",
        ),
        (
            {"state": JobState.ABANDONED, "reason": "attempts: 3 of 3 made"},
            "All its attempts are used up (3 of 3 made): run it again by hand.",
        ),
        ({"state": JobState.ABANDONED, "reason": "max_runtime: 6 h"}, "It ran longer than it may (6 h)."),
        (
            {"state": JobState.ABANDONED, "reason": "superseded: the forge forgot it"},
            "It is not run again: the forge forgot it.",
        ),
    ],
)
def test_each_state_after_the_queue_has_its_sentence(changes: dict[str, object], sentence: str) -> None:
    assert ask(replace(WAITING, **changes)) == sentence  # type: ignore[arg-type]


def test_the_timeline_of_a_job_whose_machine_is_unheard_of_does_not_call_it_ended() -> None:
    row = replace(WAITING, state=JobState.RUNNING, started_at=earlier(10), finished_at=earlier(2))
    assert timeline(Story(chain=[row]))[-1].text == "Its forge gave it up"


def test_the_timeline_merges_job_machine_and_decisions_in_order() -> None:
    row = replace(WAITING, started_at=earlier(10), finished_at=earlier(2), conclusion=Conclusion.SUCCESS)
    move = InstanceMove(
        instance=instance(1, NOW, InstanceState.READY).id,
        at=earlier(15),
        from_state=None,
        to_state=InstanceState.READY,
        cause="its agent said hello",
    )
    entry = LedgerEntry(
        at=earlier(20), actor="plan", action="register_runner", subject=row.id, pool="linux", reason="due", outcome="ok"
    )
    row = replace(row, instance=move.instance)
    lines = timeline(Story(chain=[row], moves={move.instance: [move]}, ledger={row.id: [entry]}))
    assert [(line.kind, line.text) for line in lines] == [
        ("job", "Queued at github"),
        ("job", "We learned of it by a webhook"),
        ("decision", "Register runner: due"),
        ("machine", "Machine i-0001 is ready: its agent said hello"),
        ("job", "Started"),
        ("job", "Ended: success"),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (349200, "4 d 1 h")],
)
def test_durations_have_at_most_two_units(seconds: float, words: str) -> None:
    assert ago(timedelta(seconds=seconds)) == words
