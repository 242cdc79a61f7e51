"""Queued jobs of the sandbox's github.com, found by the labels a runner has."""

from autoscaler.sandbox.github_model import Job


def wanted_labels(labels: tuple[str, ...]) -> frozenset[str]:
    """Labels as GitHub compares them: without regard to case."""
    return frozenset(label.lower() for label in labels)


class JobQueue:
    """By repository and label set, oldest first; each set's head is found in constant time."""

    def __init__(self) -> None:
        self._order = 0
        self._queued: dict[str, dict[frozenset[str], dict[int, int]]] = {}

    def put(self, job: Job) -> None:
        self._order += 1
        sets = self._queued.setdefault(job.repo, {})
        sets.setdefault(wanted_labels(job.spec.labels), {})[job.id] = self._order

    def remove(self, job: Job) -> None:
        sets = self._queued.get(job.repo, {})
        labels = wanted_labels(job.spec.labels)
        jobs = sets.get(labels, {})
        jobs.pop(job.id, None)
        if not jobs:
            sets.pop(labels, None)

    def oldest(self, repos: list[str], labels: frozenset[str]) -> int | None:
        """The id of the job that waits longest among those of `repos` that ask for no more than `labels`."""
        best: tuple[int, int] | None = None
        for repo in repos:
            for asked, jobs in self._queued.get(repo, {}).items():
                if asked <= labels:
                    job_id, order = next(iter(jobs.items()))
                    if best is None or order < best[0]:
                        best = (order, job_id)
        return None if best is None else best[1]
