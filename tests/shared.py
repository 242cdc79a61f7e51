"""Where the reference material lies that some tests read; it is not part of the repository."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


def require_shared() -> Path:
    """The folder of the reference material; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    return SHARED
