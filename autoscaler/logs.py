"""Logging: structlog to stderr, one JSON object per line, or aligned and coloured text for a person at a terminal.

Owns the processors and the last line of defence against secrets in log lines. Secrets travel as `spi.Secret`, which
shows nothing by itself; what is scrubbed here is what should never have been there. Standard-library loggers
(aiohttp, asyncio, SDKs) go through the same processors.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from autoscaler.spi import Secret

HIDDEN = "***"
_SHORTEST_SECRET = 8
"""Shorter secrets would blot out ordinary words; what forges issue is longer."""

_SECRET_KEY = re.compile(
    r"(?i)(?:^|_|-)(?:token|secret|password|passwd|private_key|authorization|jitconfig|cookie|claim_key)$"
)
_SECRET_TEXTS = re.compile(
    r"(?:gh[opsu]_|github_pat_|ghr_)\w{16,}"
    r"|(?:glpat|glrt|glcbt|glptt|gldt|glft|glsoat|glrtr)-[\w.-]{16,}"
    r"|whsec_[\w+/=-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?i:\bbearer\s+)[\w.~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


class Scrubber:
    """Replaces secrets in log events: by key name, by the look of well-known tokens, and the given ones verbatim."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        known = {secret.reveal() for secret in secrets}
        ordered = sorted((one for one in known if len(one) >= _SHORTEST_SECRET), key=lambda one: (-len(one), one))
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {key: self._scrub_key(key, value) for key, value in event.items()}

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return _SECRET_TEXTS.sub(HIDDEN, text)

    def _scrub_key(self, key: str, value: Any) -> Any:
        return HIDDEN if isinstance(value, str) and value and _SECRET_KEY.search(key) else self._scrub(value)

    def _scrub(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {str(key): self._scrub_key(str(key), one) for key, one in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._scrub(one) for one in value]
        return self.text(repr(value))


class _Lossy:
    """A stream that loses lines when it cannot write (disk full, reader gone): the work goes on without its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _escape(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """What strangers wrote must not steer a terminal, nor look like a line of its own."""
    return {key: _escaped(key, value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(key: str, text: str) -> str:
    kept = "\n\t" if key in ("exception", "stack") else ""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def configure(
    *, level: str = "info", stream: TextIO | None = None, secrets: Iterable[Secret] = (), pretty: bool | None = None
) -> None:
    """Send all logging of this process to `stream` (stderr). May be called again, as after a reload.

    `pretty` is for people; unless given it follows whether the stream is a terminal. `secrets` never appear.
    """
    out = sys.stderr if stream is None else stream
    is_pretty = out.isatty() if pretty is None else pretty
    lossy = cast(TextIO, _Lossy(out))
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        Scrubber(secrets),
    ]
    ending: list[Processor] = (
        [_escape, structlog.dev.ConsoleRenderer(colors=True)]
        if is_pretty
        else [structlog.processors.JSONRenderer(sort_keys=False)]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(lossy),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lossy)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING) if threshold > logging.DEBUG else threshold)
