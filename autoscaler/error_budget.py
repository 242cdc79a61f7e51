"""When interruptions hurt more of a pool's jobs than its error budget allows, and what that does to its spot share.

Pure. A pool's account counts jobs and hurt jobs in two windows, in which what happened fades: e-fold with each
window's length. The burn of a window is the hurt share of its jobs over the allowed share. Both windows must burn too
fast before spot is cut: the long one so that a bad minute is no reason, the short one so that what is over is none
either (the usual rule of two windows; Google, The Site Reliability Workbook, chapter 5). The way back is the same
steps, as soon as the short window is below its allowance.
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from autoscaler.model import Burn

SHORT = timedelta(hours=1)
LONG = timedelta(hours=24)
TOO_FAST = 2.0
"""Spot is cut when the budget burns faster than this, in both windows."""
AS_ALLOWED = 1.0
"""It comes back, step by step, when the short window burns slower than this."""
STEPS = (1.0, 0.5, 0.25, 0.125, 0.0)
STEP_EVERY = timedelta(minutes=10)
"""A step must show what it did before the next one: boots and jobs take minutes."""
LEAST_JOBS = 20.0
LEAST_HURT = 2.5
"""Two hurt jobs are an accident, however few jobs there were; the third fades from its first second."""
LEAST_BUDGET = 0.001
"""A budget of nothing is taken for this: otherwise one hurt job would burn without bounds."""
NOTHING_HAPPENS = 1.0
"""A window that holds less than a job says that nothing hurts now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Jobs that ended and jobs that were hurt, faded as of the account's instant."""

    jobs: float = 0.0
    hurt: float = 0.0

    def faded(self, by: float) -> "Window":
        return Window(jobs=self.jobs * by, hurt=self.hurt * by)

    def added(self, jobs: float, hurt: float) -> "Window":
        return Window(jobs=max(0.0, self.jobs + jobs), hurt=max(0.0, self.hurt + hurt))

    def burn(self, budget: float) -> float:
        """How fast the budget is used up, per allowance; 0 while next to nothing is known."""
        if self.jobs < NOTHING_HAPPENS:
            return 0.0
        return min(1.0, self.hurt / self.jobs) / max(budget, LEAST_BUDGET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A pool's error budget as of `at`. `step` counts down STEPS; `stepped_at` is when it changed last."""

    at: datetime
    short: Window = Window()
    long: Window = Window()
    step: int = 0
    stepped_at: datetime | None = None

    @property
    def spot_share(self) -> float:
        return STEPS[self.step]


def faded(account: Account, now: datetime) -> Account:
    """The same account, as much as it counts now."""
    age = max(timedelta(0), now - account.at)
    return replace(
        account,
        at=max(now, account.at),
        short=account.short.faded(math.exp(-(age / SHORT))),
        long=account.long.faded(math.exp(-(age / LONG))),
    )


def booked(account: Account, now: datetime, *, jobs: float = 0.0, hurt: float = 0.0) -> Account:
    """With jobs that ended, and jobs that were hurt; less than 0 takes back what turned out not to be so."""
    account = faded(account, now)
    return replace(account, short=account.short.added(jobs, hurt), long=account.long.added(jobs, hurt))


def stepped(account: Account, budget: float, now: datetime) -> Account:
    """With one step down or up where it is due, at most one in `STEP_EVERY`."""
    if account.stepped_at is not None and now < account.stepped_at + STEP_EVERY:
        return account
    account = faded(account, now)
    short, long = account.short.burn(budget), account.long.burn(budget)
    is_known = account.long.jobs >= LEAST_JOBS and account.long.hurt >= LEAST_HURT
    if is_known and short > TOO_FAST and long > TOO_FAST and account.step < len(STEPS) - 1:
        return replace(account, step=account.step + 1, stepped_at=now)
    if account.step > 0 and short < AS_ALLOWED:
        return replace(account, step=account.step - 1, stepped_at=now)
    return account


def burn_of(account: Account, budget: float) -> Burn:
    """What plan sees of it."""
    share = account.spot_share
    reason = "" if share == 1 else f"{hurt_words(account, budget)}; {share_words(share)}"
    return Burn(share=round(account.long.burn(budget), 2), spot_share=share, reason=reason)


def hurt_words(account: Account, budget: float) -> str:
    """For people: how many jobs interruptions hurt, against how many may be."""
    short, long = account.short, account.long
    return (
        f"interruptions hurt about {_share(short)} of its jobs in the last hour and {_share(long)} in the last day, "
        f"{short.burn(budget):.1f} and {long.burn(budget):.1f} times its error budget of {budget:.1%}"
    )


def share_words(spot_share: float) -> str:
    if spot_share == 1:
        return "all of its new machines may be spot again"
    return f"at most {spot_share:.1%} of its machines may be spot".replace(".0%", "%")


def _share(window: Window) -> str:
    return f"{window.hurt:.0f} of {window.jobs:.0f}"
