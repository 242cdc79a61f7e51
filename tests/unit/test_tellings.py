"""The words that people read when a job of theirs lost its machine."""

from dataclasses import replace
from datetime import timedelta

import pytest

from autoscaler.model import Interruption, Job, JobState
from autoscaler.spi import ForgeTraits, InstanceId, ProviderId
from autoscaler.tellings import NAME_LIMIT, code, plain, telling_key, telling_of
from tests.admin_world import LINUX, SPOT, instance, job
from tests.unit.plan_world import GITHUB_TRAITS, GITLAB_TRAITS, NOW, POOL, S

MACHINE = replace(instance(1, NOW, S.DRAINING), provider_id=ProviderId("i-0abc"))
LOST = job(
    1,
    NOW,
    JobState.LOST,
    instance=MACHINE.id,
    commit="c0ffee",
    url="https://github.com/acme/shop/actions/runs/5/job/1",
    attempt=2,
)
LOSS = Interruption(
    instance=MACHINE.id,
    provider=SPOT.provider,
    pool=LINUX,
    capacity_pool=SPOT,
    noticed_at=NOW,
    sources=("agent", "queue"),
    is_announced=True,
    reclaim_at=NOW + timedelta(minutes=2),
)


def text_of(
    lost: Job = LOST,
    *,
    loss: Interruption | None = LOSS,
    refusal: str | None = None,
    traits: ForgeTraits = GITHUB_TRAITS,
) -> str:
    return telling_of(lost, loss=loss, machine=MACHINE, pool=POOL, traits=traits, refusal=refusal).text


def test_it_says_that_it_was_infrastructure_which_machine_when_and_how_we_know() -> None:
    text = text_of()
    assert "This is infrastructure, not your test" in text
    assert f"`i-0abc` (`{SPOT.machine_type}`, zone `{SPOT.zone}`, spot, provider `{SPOT.provider}`)" in text
    assert "announced at 2026-01-05 12:00:00 UTC, to be taken by 2026-01-05 12:02:00 UTC" in text
    assert "our agent on the machine was told so by the cloud; the cloud's notice" in text
    assert "**Attempt**: 2 of 3" in text
    assert f"<{LOST.url}>" in text


def test_a_loss_without_a_word_says_so() -> None:
    gone = NOW + timedelta(seconds=7)
    text = text_of(loss=replace(LOSS, is_announced=False, reclaim_at=None, cutoff_at=gone, sources=("heartbeat",)))
    assert "2026-01-05 12:00:07 UTC, without a warning" in text
    assert "fell silent" in text


def test_a_loss_nobody_can_explain_is_told_all_the_same() -> None:
    assert "was lost before the job was done" in text_of(loss=None)


@pytest.mark.parametrize(
    ("traits", "said"),
    [(GITLAB_TRAITS, "queued again at once"), (GITHUB_TRAITS, "as soon as the other jobs of this run have ended")],
)
def test_it_says_when_the_job_comes_back(traits: ForgeTraits, said: str) -> None:
    assert said in text_of(traits=traits)


@pytest.mark.parametrize(
    ("refusal", "why", "todo"),
    [
        ("opted_out: label no-requeue", "opted out of that (`label no-requeue`)", "once it is safe"),
        ("attempts: 3 of 3 made", "attempts are used up (`3 of 3 made`)", "Run it again by hand"),
        ("unservable: no pool serves it any more", "`no pool serves it any more`", "Tell those who run"),
    ],
)
def test_a_job_that_stays_lost_says_why_and_what_to_do(refusal: str, why: str, todo: str) -> None:
    text = text_of(refusal=refusal)
    assert "it is not queued again" in text
    assert why in text
    assert todo in text


def test_each_loss_has_a_key_of_its_own_that_stays() -> None:
    other = replace(LOST, instance=InstanceId("i-2"))
    assert telling_key(LOST) == telling_key(replace(LOST, attempt=3, reason="x")) == f"{LOST.id}/{MACHINE.id}"
    assert telling_key(other) != telling_key(LOST)


def test_the_title_alone_says_what_matters_and_fits_a_commit_status() -> None:
    for refusal, follows in ((None, "is queued again"), ("attempts: 3 of 3 made", "is not queued again")):
        made = telling_of(LOST, loss=LOSS, machine=MACHINE, pool=POOL, traits=GITHUB_TRAITS, refusal=refusal)
        assert made.title.startswith("Infrastructure, not your test")
        assert "attempt 2 of 3" in made.title
        assert made.title.endswith(follows)
        assert len(made.title) <= 140


def test_what_the_hook_had_time_for_is_told() -> None:
    assert "ran for 3.2 s" in text_of(loss=replace(LOSS, hook_s=3.2))
    assert "ran for" not in text_of()


def test_a_strangers_name_stays_text() -> None:
    hostile = "x` @everyone <img src=x> [a](http://evil) \n/close\r\n# big\u202e"
    made = telling_of(
        replace(LOST, name=hostile), loss=LOSS, machine=MACHINE, pool=POOL, traits=GITHUB_TRAITS, refusal=None
    )
    span = made.text.partition("`")[2].partition("`")[0]
    assert span == "x' @everyone <img src=x> [a](http://evil) /close # big"
    assert not any(line.startswith(("/", "#")) for line in made.text.splitlines())
    assert "\n" not in made.job_name


def test_an_address_that_could_end_its_link_is_left_out() -> None:
    for url in ("javascript:alert(1)", "https://x/> <b>", "https://x/) [y](z", ""):
        assert "**Job**" not in text_of(replace(LOST, url=url))


def test_long_names_are_cut_and_empty_ones_are_still_something() -> None:
    assert len(plain("n" * 500)) == NAME_LIMIT
    assert code("") == "`-`"
