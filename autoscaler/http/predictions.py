"""GET /api/v1/predictions: how good the predictions of breaches were, for all jobs and for each pool."""

from autoscaler.http.documents import Document, instant
from autoscaler.http.view import DaemonView
from autoscaler.scores import DAYS_KEPT, Calibration


def predictions_document(view: DaemonView) -> Document:
    """The first one is of all pools together (`pool` is null)."""
    return {
        "now": instant(view.now()),
        "days": DAYS_KEPT,
        "predictions": [_calibration_document(one) for one in view.predictions()],
    }


def _calibration_document(one: Calibration) -> Document:
    return {
        "pool": one.pool,
        "jobs": one.jobs,
        "brier": one.brier,
        "bins": [{"predicted": each.predicted, "observed": each.observed, "jobs": each.jobs} for each in one.bins],
    }
