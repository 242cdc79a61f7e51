"""Owns the two ways in which GitLab writes an instant: ISO 8601 and "2016-08-12 15:23:28 UTC"."""

from datetime import UTC, datetime


def parse_instant(value: object) -> datetime | None:
    """An aware UTC datetime; None for null, absent and unreadable values (they are never worth losing a job for)."""
    if not isinstance(value, str) or not value:
        return None
    text = value.removesuffix(" UTC") + "+00:00" if value.endswith(" UTC") else value
    try:
        instant = datetime.fromisoformat(text)
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
