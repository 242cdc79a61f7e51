"""One machine's metadata service: a server of its own on loopback, so that the port says which machine asks."""

from aiohttp import web


class MetadataSite:
    """Serves an application for one machine. `authority` is "127.0.0.1:port"."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        self.authority = ""

    async def start(self) -> "MetadataSite":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.authority = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def aclose(self) -> None:
        await self._runner.cleanup()
