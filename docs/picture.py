"""`make picture`: take the README's pictures of the status page, from a real demo, in a real browser.

Starts `autoscaler demo`, lets it run until the page has something to show, opens the page in Chromium at the width of a
desktop and of a phone, and ends the demo. Writes docs/status-page.png and docs/status-page-phone.png.
"""

import argparse
import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import aiohttp
from playwright.async_api import Browser, Page, async_playwright

HERE = Path(__file__).parent
SHOTS = {"status-page.png": (1280, 1040), "status-page-phone.png": (390, 844)}
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
LIMIT_BYTES = 300_000
LIVELY_WITHIN_S = 120.0
_ADDRESS = re.compile(r"status page (http://[^\s/]+)/login#token=(\S+)")


async def main() -> int:
    options = _options()
    with tempfile.TemporaryFile("w+") as log:
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "autoscaler", "demo", "--duration", str(_duration_s(options.warm_up))),
            *("--seed", str(options.seed), "--provider", options.provider, "--faults", options.faults),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
        try:
            page = await _until(lambda: _page(log), within_s=60)
            if page is None:
                log.seek(0)
                raise SystemExit(f"the demo did not start; it said:\n{log.read()[-2000:]}")
            await asyncio.sleep(options.warm_up)  # the plot draws what has been
            await _take(page[1], page[2], options.into)
        finally:
            if demo.returncode is None:
                demo.send_signal(signal.SIGINT)
            await demo.wait()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="docs/picture.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--warm-up", type=float, default=240.0, metavar="S", help="seconds before the picture")
    parser.add_argument("--seed", type=int, default=1, help="of the demo's workload")
    parser.add_argument("--provider", default="local", help="where the demo's machines come from")
    parser.add_argument("--faults", default="", help="what goes wrong meanwhile")
    parser.add_argument("--into", type=Path, default=HERE, metavar="DIR", help="where the pictures go")
    return parser.parse_args()


def _duration_s(warm_up_s: float) -> float:
    """So long that the job which no pool serves, due after a quarter of the demo, comes just before the picture."""
    return max(4 * (warm_up_s - 5), warm_up_s + LIVELY_WITHIN_S + 60)


async def _page(log: IO[str]) -> re.Match[str] | None:
    """The page's address and its token, once the demo has said them."""
    log.seek(0)
    return _ADDRESS.search(log.read())


async def _is_lively(client: aiohttp.ClientSession, address: str) -> bool:
    """Whether the page shows jobs that wait, run and are served by no pool, and machines on their way."""
    try:
        async with client.get(f"{address}/api/v1/status") as answer:
            status = await answer.json()
    except (aiohttp.ClientError, TimeoutError):
        return False
    coming = sum(pool["instances"].get(state, 0) for pool in status["pools"] for state in ("requested", "launched"))
    waiting = status["jobs"]["queued"] - status["unserved"]
    return bool(waiting >= 3 and status["jobs"]["running"] >= 4 and coming >= 2 and status["unserved"])


async def _until(condition: Callable[[], Awaitable[Any]], *, within_s: float) -> Any:
    """The condition's value once it is true; the last moment counts too: a quiet page is better than no picture."""
    deadline = time.monotonic() + within_s
    while not (value := await condition()) and time.monotonic() < deadline:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.1)
    return value


async def _take(address: str, token: str, folder: Path) -> None:
    """Both pictures at the same lively moment: the pages are open and live before it comes."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            pages = {name: await _open(browser, f"{address}/login#token={token}", size) for name, size in SHOTS.items()}
            bearer = {"Authorization": f"Bearer {token}"}
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), headers=bearer) as client:
                await _until(lambda: _is_lively(client, address), within_s=LIVELY_WITHIN_S)
            await asyncio.gather(*(page.screenshot(path=folder / name) for name, page in pages.items()))
        finally:
            await browser.close()
    for name in SHOTS:
        size_bytes = (folder / name).stat().st_size
        if size_bytes > LIMIT_BYTES:
            raise SystemExit(f"{folder / name} has {size_bytes} bytes, more than {LIMIT_BYTES}")
        print(f"{folder / name}: {size_bytes / 1000:.0f} kB", file=sys.stderr)


async def _open(browser: Browser, address: str, size: tuple[int, int]) -> Page:
    page = await browser.new_page(viewport={"width": size[0], "height": size[1]}, device_scale_factor=1)
    await page.goto(address, wait_until="domcontentloaded")
    await page.locator("#link", has_text="Live").wait_for()
    await page.locator("#plot-fleet svg").wait_for(state="attached")
    return page


def _chromium() -> str | None:
    """The browser of $CHROMIUM or of the system; None lets Playwright use its own."""
    given = os.environ.get("CHROMIUM")
    return given or next((path for path in CHROMIUM if Path(path).exists()), None)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
