"""REST handlers of the sandbox's GitHub API: the App, installations, repositories, hooks and their deliveries."""

import dataclasses
from collections.abc import Callable, Mapping

from aiohttp import web

from autoscaler.sandbox import github_deliveries as deliveries
from autoscaler.sandbox import github_payloads as payloads
from autoscaler.sandbox.github_auth import NO_JWT, AppIdentity, Authenticator
from autoscaler.sandbox.github_deliveries import Deliveries
from autoscaler.sandbox.github_http import CALLER, answer, cursor_page, integer, json_body, page, urls
from autoscaler.sandbox.github_limits import RateLimiter
from autoscaler.sandbox.github_model import Account, GitHubError, Hook, Json
from autoscaler.sandbox.github_outbox import EVENTS
from autoscaler.sandbox.github_rest_actions import may_see, visible_repo
from autoscaler.sandbox.github_world import GitHubWorld

PERMISSIONS = {
    "actions": "write",
    "administration": "write",
    "checks": "write",
    "metadata": "read",
    "organization_self_hosted_runners": "write",
    "statuses": "write",
}


class AppApi:
    """`app` None: no App is registered here, its paths answer 401."""

    def __init__(
        self,
        world: GitHubWorld,
        *,
        app: AppIdentity | None,
        clock: Callable[[], float],
        changed: Callable[[], None],
        authenticator: Authenticator,
        sent: Deliveries,
        limiter: RateLimiter,
        permissions: Mapping[str, str],
    ) -> None:
        self._world = world
        self._app = app
        self._clock = clock
        self._changed = changed
        self._authenticator = authenticator
        self._sent = sent
        self._limiter = limiter
        self._permissions = permissions

    def routes(self, prefix: str) -> list[web.RouteDef]:
        app, installations = prefix + "/app", prefix + "/app/installations"
        repo = prefix + "/repos/{owner}/{repo}"
        routes = [
            web.get(app, self.get_app),
            web.get(app + "/hook/config", self.get_app_hook),
            web.patch(app + "/hook/config", self.patch_app_hook),
            web.get(installations, self.list_installations),
            web.get(installations + "/{installation_id}", self.get_installation),
            web.post(installations + "/{installation_id}/access_tokens", self.create_token),
            web.get(prefix + "/orgs/{org}/installation", self.get_account_installation),
            web.get(repo + "/installation", self.get_account_installation),
            web.get(prefix + "/installation/repositories", self.list_installed_repos),
            web.get(prefix + "/orgs/{org}", self.get_org),
            web.get(prefix + "/orgs/{org}/repos", self.list_org_repos),
            web.get(repo, self.get_repo),
            web.get(prefix + "/rate_limit", self.get_rate_limit),
            web.get(prefix + "/meta", self.get_meta),
        ]
        for hook in (prefix + "/orgs/{org}/hooks", repo + "/hooks"):
            routes += [
                web.get(hook, self.list_hooks),
                web.post(hook, self.create_hook),
                web.get(hook + "/{hook_id}", self.get_hook),
                web.post(hook + "/{hook_id}/pings", self.ping_hook),
            ]
        for hook in (app + "/hook", prefix + "/orgs/{org}/hooks/{hook_id}", repo + "/hooks/{hook_id}"):
            routes += [
                web.get(hook + "/deliveries", self.list_deliveries),
                web.get(hook + "/deliveries/{delivery_id}", self.get_delivery),
                web.post(hook + "/deliveries/{delivery_id}/attempts", self.redeliver),
            ]
        return routes

    # -- the App and its installations --------------------------------------------------------------------------

    async def get_app(self, request: web.Request) -> web.Response:
        app, where = self._as_app(request), urls(request)
        created = payloads.iso(0)
        owner = next(iter(self._world.accounts.values()), None)
        body = {
            "id": app.app_id,
            "slug": app.slug,
            "node_id": payloads.node_id("A", app.app_id),
            "client_id": app.client_id,
            "owner": payloads.sender(where) if owner is None else payloads.owner(owner, where),
            "name": app.slug,
            "description": "",
            "external_url": where.html,
            "html_url": f"{where.html}/apps/{app.slug}",
            "created_at": created,
            "updated_at": created,
            "permissions": dict(self._permissions),
            "events": list(EVENTS),
            "installations_count": len(self._world.accounts),
        }
        return answer(200, body)

    async def get_app_hook(self, request: web.Request) -> web.Response:
        self._as_app(request)
        return answer(200, _config(self._app_hook()))

    async def patch_app_hook(self, request: web.Request) -> web.Response:
        self._as_app(request)
        body, hook = await json_body(request), self._app_hook()
        url, secret = body.get("url", hook.url), body.get("secret")
        if not isinstance(url, str) or not isinstance(secret, str | None):
            raise GitHubError(422, "Invalid request.")
        secret_bytes = hook.secret if secret is None else secret.encode()
        self._world.hooks[hook.id] = dataclasses.replace(hook, url=url, secret=secret_bytes)
        return answer(200, _config(self._app_hook()))

    async def list_installations(self, request: web.Request) -> web.Response:
        app = self._as_app(request)
        rows = list(self._world.accounts.values())
        return page(request, rows, lambda row: _installation(row, app, self._permissions, urls(request)))

    async def get_installation(self, request: web.Request) -> web.Response:
        app = self._as_app(request)
        return answer(200, _installation(self._installed(request), app, self._permissions, urls(request)))

    async def get_account_installation(self, request: web.Request) -> web.Response:
        app, info = self._as_app(request), request.match_info
        account = self._world.accounts.get(info.get("org", info.get("owner", "")))
        if account is None or ("repo" in info and f"{info['owner']}/{info['repo']}" not in self._world.repos):
            raise GitHubError(404, "Not Found")
        return answer(200, _installation(account, app, self._permissions, urls(request)))

    async def create_token(self, request: web.Request) -> web.Response:
        self._as_app(request)
        await json_body(request)
        account = self._installed(request)
        token, expires_at = self._authenticator.mint(account.login, account.installation_id)
        body = {"token": token, "expires_at": payloads.iso(expires_at), "permissions": dict(self._permissions)}
        return answer(201, {**body, "repository_selection": "all"})

    async def list_installed_repos(self, request: web.Request) -> web.Response:
        caller = request[CALLER]
        if caller.kind != "installation":
            raise GitHubError(
                403, "You must authenticate with an installation access token in order to list repositories"
            )
        rows = [repo for repo in self._world.repos.values() if repo.owner.login == caller.login]
        return page(request, rows, lambda row: payloads.repository(row, urls(request)), key="repositories")

    async def get_org(self, request: web.Request) -> web.Response:
        where, account = urls(request), self._account(request)
        created = payloads.iso(account.created_at)
        body = {
            **payloads.organization(account, where),
            "html_url": f"{where.html}/{account.login}",
            "type": "Organization",
            "created_at": created,
            "updated_at": created,
            "has_organization_projects": True,
            "has_repository_projects": True,
            "public_repos": sum(repo.owner is account for repo in self._world.repos.values()),
            "public_gists": 0,
            "followers": 0,
            "following": 0,
            "archived_at": None,
        }
        return answer(200, body)

    async def list_org_repos(self, request: web.Request) -> web.Response:
        account = self._account(request)
        rows = [repo for repo in self._world.repos.values() if repo.owner is account]
        return page(request, rows, lambda row: payloads.repository(row, urls(request)))

    async def get_repo(self, request: web.Request) -> web.Response:
        return answer(200, payloads.repository(visible_repo(self._world, request), urls(request)))

    async def get_rate_limit(self, request: web.Request) -> web.Response:
        state = self._limiter.state(request[CALLER].budget)
        if not state:
            raise GitHubError(404, "Rate limiting is not enabled.")
        fixed = {"remaining": 30, "used": 0, "reset": state["reset"]}
        registration = {**fixed, "limit": 10_000, "remaining": 10_000}
        resources = {"core": state, "search": {**fixed, "limit": 30}, "actions_runner_registration": registration}
        return answer(200, {"resources": resources, "rate": state})

    async def get_meta(self, _: web.Request) -> web.Response:
        return answer(200, {"verifiable_password_authentication": False, "hooks": ["127.0.0.1/32"]})

    # -- hooks --------------------------------------------------------------------------------------------------

    async def list_hooks(self, request: web.Request) -> web.Response:
        scope = self._scope(request)
        rows = [hook for hook in self._world.hooks.values() if hook.scope == scope]
        return page(request, rows, lambda row: payloads.hook(row, urls(request)))

    async def create_hook(self, request: web.Request) -> web.Response:
        scope, body = self._scope(request), await json_body(request)
        config, events = body.get("config"), body.get("events", ["push"])
        if not isinstance(config, dict) or not isinstance(config.get("url"), str) or not isinstance(events, list):
            raise GitHubError(422, "Validation Failed")
        secret = str(config.get("secret", "")).encode()
        hook = self._world.add_hook(scope, config["url"], secret=secret, now=self._clock(), events=events)
        self._changed()
        return answer(201, payloads.hook(hook, urls(request)))

    async def get_hook(self, request: web.Request) -> web.Response:
        return answer(200, payloads.hook(self._hook(request), urls(request)))

    async def ping_hook(self, request: web.Request) -> web.Response:
        self._world.ping(self._hook(request).id)
        self._changed()
        return web.Response(status=204)

    async def list_deliveries(self, request: web.Request) -> web.Response:
        rows = self._sent.of_hook(self._hook(request).id, status=request.query.get("status"))
        return cursor_page(request, rows, lambda row: row.id, deliveries.item)

    async def get_delivery(self, request: web.Request) -> web.Response:
        row = self._sent.one(self._hook(request).id, integer(request, "delivery_id"))
        return answer(200, deliveries.detail(row))

    async def redeliver(self, request: web.Request) -> web.Response:
        await json_body(request)
        self._sent.redeliver(self._hook(request).id, integer(request, "delivery_id"))
        return answer(202, {})

    # -- parts --------------------------------------------------------------------------------------------------

    def _as_app(self, request: web.Request) -> AppIdentity:
        if self._app is None or request[CALLER].kind != "app":
            raise GitHubError(401, NO_JWT)
        return self._app

    def _app_hook(self) -> Hook:
        hook = next((hook for hook in self._world.hooks.values() if hook.scope is None), None)
        if hook is None:
            raise GitHubError(404, "Not Found")
        return hook

    def _installed(self, request: web.Request) -> Account:
        number = integer(request, "installation_id")
        for account in self._world.accounts.values():
            if account.installation_id == number:
                return account
        raise GitHubError(404, "Not Found")

    def _account(self, request: web.Request) -> Account:
        account = self._world.accounts.get(request.match_info["org"])
        if account is None or not may_see(request[CALLER], account.login):
            raise GitHubError(404, "Not Found")
        return account

    def _scope(self, request: web.Request) -> str:
        if "repo" in request.match_info:
            return visible_repo(self._world, request).full_name
        return self._account(request).login

    def _hook(self, request: web.Request) -> Hook:
        if "hook_id" not in request.match_info:
            self._as_app(request)
            return self._app_hook()
        hook = self._world.hooks.get(integer(request, "hook_id"))
        if hook is None or hook.scope != self._scope(request):
            raise GitHubError(404, "Not Found")
        return hook


def _config(hook: Hook) -> Json:
    return {"url": hook.url, "content_type": "json", "insecure_ssl": "0", "secret": "********"}


def _installation(account: Account, app: AppIdentity, permissions: Mapping[str, str], where: payloads.Urls) -> Json:
    number, created = account.installation_id, payloads.iso(account.created_at)
    return {
        "id": number,
        "account": payloads.owner(account, where),
        "repository_selection": "all",
        "access_tokens_url": f"{where.api}/app/installations/{number}/access_tokens",
        "repositories_url": f"{where.api}/installation/repositories",
        "html_url": f"{where.html}/organizations/{account.login}/settings/installations/{number}",
        "app_id": app.app_id,
        "app_slug": app.slug,
        "client_id": app.client_id,
        "target_id": account.id,
        "target_type": "Organization",
        "permissions": dict(permissions),
        "events": list(EVENTS),
        "created_at": created,
        "updated_at": created,
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": None,
        "suspended_at": None,
    }
