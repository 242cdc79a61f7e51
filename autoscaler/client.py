"""The clients of the admin API: status, why, drain, pause, resume, chaos. They ask a running daemon over HTTP.

Owns talking and the words for what goes wrong; what is shown is made in `client_text`. Exit codes: 0 done, 2 what was
asked for is wrong (address, token, job, pool), 1 anything else. The token comes from --token or $AUTOSCALER_TOKEN and
appears nowhere.
"""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from autoscaler.client_chaos import follow, has_failed, report_text
from autoscaler.client_text import Palette, control_text, status_text
from autoscaler.client_why import why_text

DONE, FAILED, USAGE = 0, 1, 2
TIMEOUT_S = 15.0
JOBS_SEARCHED = 1000

Document = dict[str, Any]


class AskError(Exception):
    """The question came to nothing; the text says why and what to do."""

    def __init__(self, text: str, *, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


class _NotFound(Exception):
    """The daemon knows no such thing; its own words."""


async def ask(verb: str, options: argparse.Namespace) -> int:
    """Run one client command (`url`, `token`, `json` and its own argument in `options`); returns the exit code."""
    code = DONE
    try:
        async with _Daemon(options.url, options.token or os.environ.get("AUTOSCALER_TOKEN", "")) as daemon:
            palette = Palette.of(sys.stdout)
            match verb:
                case "status":
                    document = await daemon.get("status")
                    shown = status_text(document, palette)
                case "why":
                    document = await _explained(daemon, options.job)
                    shown = why_text(document, palette)
                case "chaos":
                    document = await _game_day(daemon, options)
                    shown, code = report_text(document), FAILED if has_failed(document) else DONE
                case _:
                    document = await _control(daemon, verb, options.pool)
                    shown = control_text(document)
    except AskError as error:
        print(f"autoscaler {verb}: {error}", file=sys.stderr)
        return error.code
    print(json.dumps(document, indent=2) if options.json else shown)
    return code


class _Daemon:
    """A daemon's admin listener. Every failure is an AskError; an unknown thing is _NotFound."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AskError(f"{url!r} is not an address; give one such as http://127.0.0.1:9480", code=USAGE)
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._has_token = bool(token)

    async def __aenter__(self) -> "_Daemon":
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), raise_for_status=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str) -> Document:
        return await self._call("GET", path, query)

    async def post(self, path: str, body: Document | None = None) -> Document:
        return await self._call("POST", path, {}, body)

    async def _call(self, method: str, path: str, query: Mapping[str, str], body: Document | None = None) -> Document:
        try:
            async with self._session.request(
                method, f"{self._url}/api/v1/{path}", params=query, json=body, allow_redirects=False
            ) as answer:
                text = await answer.read()
                status = answer.status
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise AskError(self._unreachable(error)) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise AskError(f"{self._url} could not be asked: {error}", code=USAGE) from error
        document = _parsed(text)
        if status == 200 and document is not None:
            return document
        said = str((document or {}).get("error", ""))
        if status == 404 and document is not None:
            raise _NotFound(said)
        raise self._refused(status, said)

    def _unreachable(self, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or str(error) or f"no answer in {TIMEOUT_S:g} s"
        return (
            f"no daemon answers at {self._url} ({reason})\n"
            "  -> start it, or give the address of its admin listener (autoscaler.admin_listen in its configuration)\n"
            "     with --url or in $AUTOSCALER_URL"
        )

    def _refused(self, status: int, said: str) -> AskError:
        match status:
            case 401:
                what = "does not know this token" if self._has_token else "wants a token"
                return AskError(
                    f"{self._url} {what}\n"
                    "  -> put one of autoscaler.admin_tokens into $AUTOSCALER_TOKEN (or give it with --token)",
                    code=USAGE,
                )
            case 400 | 403 | 409:
                return AskError(f"{self._url} refuses: {said}", code=USAGE)
            case 404:
                return AskError(f"{self._url} is not an autoscaler's admin listener (404): check --url", code=USAGE)
            case 429:
                return AskError(f"{self._url} had too many wrong tokens from here; try again in a minute")
            case 503 if not said:
                return AskError(
                    f"{self._url} stands by: another daemon works on its store, or the store does not answer\n"
                    f"  -> {self._url}/readyz says which; ask the other daemon's admin listener instead"
                )
            case _:
                return AskError(f"{self._url} answered {status}{f': {said}' if said else ''}")


def _parsed(body: bytes) -> Document | None:
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


# ---------------------------------------------------------------------- pools


async def _control(daemon: _Daemon, verb: str, pool: str) -> Document:
    try:
        return await daemon.post(f"pools/{quote(pool, safe='')}/{verb}")
    except _NotFound:
        raise await _no_pool(daemon, pool) from None


async def _no_pool(daemon: _Daemon, pool: str) -> AskError:
    names = [str(one["name"]) for one in (await daemon.get("pools"))["pools"]]
    return AskError(f"there is no pool {pool!r}{_near(pool, names)}", code=USAGE)


async def _game_day(daemon: _Daemon, options: argparse.Namespace) -> Document:
    """Begin one, and follow it to its end."""
    order = {"pool": options.pool, "share": options.share, "announced": not options.no_notice}
    try:
        begun = await daemon.post("chaos", order)
    except _NotFound:
        raise await _no_pool(daemon, options.pool) from None
    path = f"chaos/{quote(str(begun['id']), safe='')}"
    return await follow(begun, lambda: daemon.get(path), wait_s=options.wait, away=AskError)


def _near(given: str, names: Sequence[str]) -> str:
    """ "; did you mean a or b?", or the names there are when few."""
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(sorted(names))}" if 0 < len(names) <= 20 else ""


# ---------------------------------------------------------------------- jobs


async def _explained(daemon: _Daemon, asked: str) -> Document:
    """What `asked` names, with its story. Raises AskError when that is nothing."""
    try:
        return await daemon.get("why", q=asked)
    except _NotFound as error:
        listed: list[Document] = (await daemon.get("jobs", limit=str(JOBS_SEARCHED)))["jobs"]
        names = [str(job["id"]) for job in listed] + [f"{job['repo']}/{job['run_id']}" for job in listed]
        raise AskError(
            f"{error}{_near_job(asked, names)}\n"
            "  -> give the id that the status page shows, the forge's own id, the job's address there, repo/run, or a\n"
            "     machine's id; jobs that only the forge's own machines serve, and what is older than the retention,\n"
            "     are not known",
            code=USAGE,
        ) from None


def _near_job(asked: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(asked, dict.fromkeys(names), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""
