"""What observe and apply tell each other in memory stays bounded, whatever jobs are called."""

from autoscaler.sightings import KEPT, REMEMBERED, Requeued, Sightings, dump_requeued, load_requeued


def test_requeues_whose_successors_never_turn_up_are_forgotten_oldest_first() -> None:
    seen = Sightings()
    seen.note_requeued("gh|acme/shop|1|build", Requeued(attempt=1))
    for number in range(REMEMBERED - 1):
        seen.note_requeued(f"gh|acme/shop|2|attempt {number}", Requeued(attempt=1))
    seen.note_requeued("gh|acme/shop|1|build", Requeued(attempt=2))
    for number in range(10):
        seen.note_requeued(f"gh|acme/shop|3|attempt {number}", Requeued(attempt=1))
    assert len(seen.requeued) == REMEMBERED
    assert seen.requeued["gh|acme/shop|1|build"].attempt == 2
    kept = load_requeued(dump_requeued(seen.requeued))
    assert len(kept) == KEPT
    assert kept["gh|acme/shop|1|build"].attempt == 2


def test_runs_with_jobs_that_must_not_run_again_are_forgotten_oldest_first() -> None:
    seen = Sightings()
    for number in range(REMEMBERED + 5):
        seen.note_spared(f"gh|acme/shop|{number}", "1")
        seen.note_spared("gh|acme/shop|0", str(number))
    assert len(seen.spared) == REMEMBERED
    assert len(seen.spared["gh|acme/shop|0"]) == REMEMBERED + 6
