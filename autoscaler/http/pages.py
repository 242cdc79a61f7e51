"""The status page and its login: static files of the package, served with the headers that keep them static.

Assets are named by a digest of their content and cached for ever; the two HTML pages are never cached. No page is
built from data: what the daemon knows reaches the browser as JSON and is set as text, never as markup.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files

from aiohttp import web

from autoscaler.http.auth import COOKIE, SESSION_LIFETIME, Access, Verdict

_SCRIPTS = ("words.js", "plot.js", "detail.js", "costs.js", "offerings.js", "waits.js", "app.js", "login.js")
_TYPES = {"style.css": "text/css", **dict.fromkeys(_SCRIPTS, "text/javascript")}
_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    b'<rect width="16" height="16" rx="3.5" fill="#0d6b5e"/>'
    b'<path d="M3.5 11.5V9M6.5 11.5V6.5M9.5 11.5V8M12.5 11.5V4.5" stroke="#fff" stroke-width="1.7" '
    b'stroke-linecap="round"/></svg>'
)
_MESSAGES = {Verdict.WRONG: "That token is not known here.", Verdict.LIMITED: "Too many tries. Wait a minute."}
_LOGIN_LIMIT = 4096


class Pages:
    """The pages of one admin application."""

    def __init__(self, access: Access) -> None:
        self._access = access
        folder = files("autoscaler.http") / "assets"
        self._assets = {name: (folder / name).read_bytes() for name in _TYPES}
        self._assets["icon.svg"] = _ICON
        self._digest = hashlib.sha256(b"".join(self._assets.values())).hexdigest()[:16]
        self._index = self._page((folder / "index.html").read_text(encoding="utf-8"))
        self._login = self._page((folder / "login.html").read_text(encoding="utf-8"))

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/", self.index),
            web.get("/login", self.login_form),
            web.post("/login", self.login),
            web.post("/logout", self.logout),
            web.get("/assets/{digest}/{name}", self.asset),
        ]

    async def index(self, _: web.Request) -> web.Response:
        return web.Response(text=self._index, content_type="text/html")

    async def login_form(self, _: web.Request) -> web.Response:
        return self._login_page("", 200)

    async def login(self, request: web.Request) -> web.Response:
        body = await _small_form(request)
        verdict, _ = self._access.check(body, self._access.peer(request))
        if verdict is not Verdict.RIGHT:
            return self._login_page(_MESSAGES[verdict], 429 if verdict is Verdict.LIMITED else 401)
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            COOKIE,
            self._access.open_session(body),
            max_age=int(SESSION_LIFETIME.total_seconds()),
            httponly=True,
            samesite="Strict",
            secure=request.secure,
        )
        return response

    async def logout(self, request: web.Request) -> web.Response:
        self._access.close_session(request.cookies.get(COOKIE, ""))
        response = web.Response(status=303, headers={"Location": "/login"})
        response.del_cookie(COOKIE, httponly=True, samesite="Strict", secure=request.secure)
        return response

    async def asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._assets or request.match_info["digest"] != self._digest:
            raise web.HTTPNotFound(text="no such file")
        return web.Response(
            body=self._assets[name],
            content_type=_TYPES.get(name, "image/svg+xml"),
            charset="utf-8",
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )

    def _page(self, text: str) -> str:
        return text.replace("{{assets}}", f"/assets/{self._digest}")

    def _login_page(self, message: str, status: int) -> web.Response:
        text = self._login.replace("{{message}}", message)
        return web.Response(text=text, content_type="text/html", status=status)


async def _small_form(request: web.Request) -> str:
    """The `token` field of a login; a body larger than any token is refused unread."""
    if (request.content_length or 0) > _LOGIN_LIMIT or request.content_length is None:
        raise web.HTTPRequestEntityTooLarge(_LOGIN_LIMIT, request.content_length or 0, text="too large")
    form = await request.post()
    token = form.get("token", "")
    return token.strip() if isinstance(token, str) else ""
