"""Checks across the sections of a configuration, each of which is valid by itself.

Owns what can only be seen with the whole file at hand: names that must be unique or exist, pools that nothing could
tell apart, limits that contradict each other. Pure; findings go to the given reporters.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from urllib.parse import urlsplit

from autoscaler.config_fields import BY_REFERENCE
from autoscaler.config_problems import near_miss
from autoscaler.config_secrets import Report
from autoscaler.config_types import AutoscalerConfig, ImageConfig, PoolConfig
from autoscaler.config_values import is_loopback
from autoscaler.spi import ForgeSettings, ProviderSettings

_KINDS_ON_THIS_HOST = frozenset({"local"})
"""Providers whose jobs are processes beside the daemon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporters:
    fault: Report
    warning: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The sections that are valid by themselves, by their place in the file, and every name that the file uses.

    `names` holds those of broken sections too, so that one mistake is not reported twice.
    """

    autoscaler: AutoscalerConfig | None
    forges: Mapping[int, ForgeSettings]
    providers: Mapping[int, ProviderSettings]
    images: Mapping[int, ImageConfig]
    pools: Mapping[int, PoolConfig]
    names: Mapping[str, Collection[str]]
    kinds: Mapping[str, Collection[str]]


def check_sections(sections: Sections, report: Reporters) -> None:
    if sections.autoscaler:
        _check_listeners(sections.autoscaler, report)
        _check_exposure(sections.autoscaler, sections.providers, report)
    _check_unique(sections, report)
    _check_kinds(sections, report)
    _check_credentials(sections, report)
    _check_images(sections, report)
    for index, pool in sections.pools.items():
        _check_references(f"pool[{index}]", pool, sections, report)
        _check_image_fits(f"pool[{index}]", pool, sections, report)
        _check_limits(f"pool[{index}]", pool, report)
        _check_globs(f"pool[{index}]", pool, sections, report)
    for (first, one), (second, other) in combinations(sorted(sections.pools.items()), 2):
        _check_distinct(f"pool[{second}]", other, (f"pool[{first}]", one), report)
    if sections.autoscaler:
        _check_deployment_caps(sections.autoscaler, sections.pools, report)


def _check_listeners(autoscaler: AutoscalerConfig, report: Reporters) -> None:
    admin = autoscaler.admin_listen
    if not autoscaler.admin_tokens and not is_loopback(admin.host):
        report.fault(
            "autoscaler.admin_listen",
            f'"{admin}" can be reached from other machines, and there are no admin_tokens',
            'Set autoscaler.admin_tokens, or listen on a loopback address, as in "127.0.0.1:9480"',
        )
    if admin.port and admin == autoscaler.listen:
        report.fault(
            "autoscaler.admin_listen", "this is the same address as autoscaler.listen", "Give each its own port"
        )
    url = urlsplit(autoscaler.public_url)
    if autoscaler.tls and url.scheme == "http":
        report.fault(
            "autoscaler.public_url", "the listener speaks TLS, and this URL does not", 'Write "https://" in public_url'
        )
    elif url.scheme == "http" and not is_loopback(url.hostname or ""):
        report.warning(
            "autoscaler.public_url",
            "webhooks and the secrets of runners would cross the network unencrypted",
            'Use "https://", with autoscaler.tls or a proxy that ends TLS',
        )


def _check_exposure(autoscaler: AutoscalerConfig, providers: Mapping[int, ProviderSettings], report: Reporters) -> None:
    """Who could use the admin API, and read registrations on their way, that should not."""
    elsewhere = sorted(one.name for one in providers.values() if one.kind not in _KINDS_ON_THIS_HOST)
    here = sorted(one.name for one in providers.values() if one.kind in _KINDS_ON_THIS_HOST)
    if here and not autoscaler.admin_tokens:
        report.fault(
            "autoscaler.admin_tokens",
            f'jobs run on this host (provider "{here[0]}"): without a token each could use the admin API over loopback',
            "Make one with: openssl rand -hex 32 > admin-token && chmod 600 admin-token; "
            'then write admin_tokens = [{ file = "admin-token" }]',
        )
    if autoscaler.admin_tokens and not is_loopback(autoscaler.admin_listen.host):
        report.warning(
            "autoscaler.admin_listen",
            "admin tokens would cross the network unencrypted: this listener speaks no TLS",
            "Listen on loopback, with a proxy that ends TLS before it",
        )
    url = urlsplit(autoscaler.public_url)
    if elsewhere and url.scheme == "http" and not autoscaler.tls and not is_loopback(url.hostname or ""):
        report.fault(
            "autoscaler.public_url",
            f'machines of "{elsewhere[0]}" would be given runner registrations unencrypted',
            'Use "https://", with autoscaler.tls or a proxy that ends TLS',
        )


def _check_unique(sections: Sections, report: Reporters) -> None:
    kinds: tuple[tuple[str, Mapping[int, str]], ...] = (
        ("forge", {index: one.name for index, one in sections.forges.items()}),
        ("provider", {index: one.name for index, one in sections.providers.items()}),
        ("image", {index: one.name for index, one in sections.images.items()}),
        ("pool", {index: one.name for index, one in sections.pools.items()}),
    )
    for kind, names in kinds:
        first: dict[str, int] = {}
        for index, name in sorted(names.items()):
            if name in first:
                message = f'the name "{name}" is taken by {kind}[{first[name]}]'
                report.fault(f"{kind}[{index}].name", message, f"Give each [[{kind}]] section a name of its own")
            first.setdefault(name, index)


def _check_kinds(sections: Sections, report: Reporters) -> None:
    for word, found in (("forge", sections.forges), ("provider", sections.providers)):
        for index, one in found.items():
            known = sorted(sections.kinds[word])
            if one.kind not in known:
                _unknown(f"{word}[{index}].kind", f"{word} kind", one.kind, known, report)


def _check_credentials(sections: Sections, report: Reporters) -> None:
    """Ids and names may stand in the file; anything else among credentials is taken for a secret."""
    for index, forge in sections.forges.items():
        for name, value in forge.credentials.items():
            if isinstance(value, str) and not name.endswith(("id", "name", "user", "type")):
                path = f"forge[{index}].credentials.{name}"
                report.fault(path, "a secret stands in the file", f"{BY_REFERENCE}. Replace the one that was here")


def _unknown(key: str, what: str, name: str, known: Sequence[str], report: Reporters) -> None:
    near = near_miss(name, list(known))
    guess = f'Did you mean "{near}"? ' if near else ""
    listed = ", ".join(f'"{one}"' for one in known) or "none"
    report.fault(key, f'there is no {what} "{name}"', f"{guess}Known here: {listed}")


def _check_references(key: str, pool: PoolConfig, sections: Sections, report: Reporters) -> None:
    wanted = [(f"{key}.image", "image", pool.image)]
    wanted += [(f"{key}.forges[{place}]", "forge", name) for place, name in enumerate(pool.forges)]
    wanted += [(f"{key}.providers[{place}]", "provider", name) for place, name in enumerate(pool.providers)]
    for path, kind, name in wanted:
        if name not in sections.names[kind]:
            _unknown(path, kind, name, sorted(sections.names[kind]), report)


def _check_images(sections: Sections, report: Reporters) -> None:
    known = {*sections.names["provider"], *sections.kinds["provider"]}
    for index, image in sections.images.items():
        for reference in image.references:
            if reference not in known:
                path = f"image[{index}].references.{reference}"
                _unknown(path, "provider or provider kind", reference, sorted(known), report)


def _check_image_fits(key: str, pool: PoolConfig, sections: Sections, report: Reporters) -> None:
    place, image = next(((at, one) for at, one in sections.images.items() if one.name == pool.image), (0, None))
    if image is None:
        return
    if image.arch != pool.shape.arch:
        report.fault(
            f"{key}.shape.arch",
            f'the pool asks for "{pool.shape.arch}", and its image "{image.name}" is for "{image.arch}"',
            f'Write arch = "{image.arch}" in the shape, or use another image',
        )
    for provider in sections.providers.values():
        if provider.name in pool.providers and image.reference_for(provider) is None:
            report.fault(
                f"image[{place}].references",
                f'the pool "{pool.name}" uses this image on provider "{provider.name}", which has no reference here',
                f"Add a table [image.references.{provider.name}] or [image.references.{provider.kind}]",
            )


def _check_limits(key: str, pool: PoolConfig, report: Reporters) -> None:
    if pool.min > pool.max:
        report.fault(f"{key}.min", f"{pool.min} is above max, {pool.max}", "Lower min or raise max")
    stocks = [(f"{key}.stock", pool.stock.hot, pool.stock.stopped)]
    stocks += [(f"{key}.stock.schedule[{at}]", one.hot, one.stopped) for at, one in enumerate(pool.stock.schedule)]
    for path, hot, stopped in stocks:
        if hot > pool.max:
            report.fault(f"{path}.hot", f"{hot} is above the pool's max, {pool.max}", "Lower hot or raise max")
        if stopped > pool.max:
            report.fault(
                f"{path}.stopped", f"{stopped} is above the pool's max, {pool.max}", "Lower stopped or raise max"
            )
    if pool.wait.target > pool.max_job_runtime:
        report.warning(
            f"{key}.wait.target", "the wait target is longer than max_job_runtime", "Check that both are meant so"
        )
    hourly, daily = pool.spill.max_usd_per_hour, pool.spill.max_usd_per_day
    if hourly is not None and daily is not None and hourly > daily:
        report.warning(
            f"{key}.spill.max_usd_per_hour",
            "it is above max_usd_per_day and never reached",
            "Lower it or raise the other",
        )


def _check_globs(key: str, pool: PoolConfig, sections: Sections, report: Reporters) -> None:
    forges = [forge for forge in sections.forges.values() if pool.serves_forge(forge.name)]
    if len(sections.forges) < len(sections.names["forge"]) or not forges:
        return
    scopes = sorted({str(scope) for forge in forges for scope in forge.scopes})
    for place, glob in enumerate(pool.repos):
        if not glob.startswith("!") and not any(_may_meet(glob, scope) for scope in scopes):
            report.fault(
                f"{key}.repos[{place}]",
                f'"{glob}" is outside every scope of the forges that this pool serves',
                f"Write globs below one of: {', '.join(scopes)}; or add a scope to the forge",
            )


def _may_meet(glob: str, scope: str) -> bool:
    """Whether a repo could match the glob and lie in the scope, judged by the glob's text before its wildcards."""
    fixed = _fixed_part(glob).lower()
    inside = f"{scope.lower()}/"
    return f"{fixed}/".startswith(inside) or (fixed != glob.lower() and inside.startswith(fixed))


def _fixed_part(glob: str) -> str:
    return glob[: min((glob.find(mark) for mark in "*?[" if mark in glob), default=len(glob))]


def _check_distinct(key: str, pool: PoolConfig, earlier: tuple[str, PoolConfig], report: Reporters) -> None:
    """Two pools that would serve the same jobs equally well: which one would, nobody could predict."""
    other_key, other = earlier
    if pool.labels != other.labels or pool.priority != other.priority:
        return
    if pool.forges and other.forges and not set(pool.forges) & set(other.forges):
        return
    shared = next(_shared_repos(pool, other), None)
    if shared is not None:
        report.fault(
            f"{key}.priority",
            f'jobs of {shared} fit the pool "{pool.name}" and {other_key} "{other.name}" equally well: '
            "same labels, same priority",
            "Give one of them another priority, other labels or other repos",
        )


def _shared_repos(pool: PoolConfig, other: PoolConfig) -> Iterator[str]:
    """Globs whose repos certainly reach both pools. Overlaps that take two different wildcards to see are left out."""
    if not _wanted(pool) and not _wanted(other):
        yield "every repo"
    for one, two in ((pool, other), (other, pool)):
        for glob in _wanted(one):
            excluded = f"!{glob}" in one.repos or f"!{glob}" in two.repos
            is_literal = _fixed_part(glob) == glob
            is_admitted = two.serves_repo(glob) if is_literal else glob in two.repos or not _wanted(two)
            if is_admitted and not excluded:
                yield f'"{glob}"'


def _wanted(pool: PoolConfig) -> list[str]:
    return [glob for glob in pool.repos if not glob.startswith("!")]


def _check_deployment_caps(autoscaler: AutoscalerConfig, pools: Mapping[int, PoolConfig], report: Reporters) -> None:
    cap = autoscaler.caps.instances
    floor = sum(pool.min for pool in pools.values())
    if cap is not None and floor > cap:
        report.fault(
            "autoscaler.caps.instances",
            f"the pools' min add up to {floor}, above this cap of {cap}",
            "Raise the cap or lower a min",
        )
    for index, pool in pools.items():
        for name in ("usd_per_hour", "usd_per_day"):
            whole, part = getattr(autoscaler.caps, name), getattr(pool.spill, f"max_{name}")
            if whole is not None and part is not None and part > whole:
                report.warning(
                    f"pool[{index}].spill.max_{name}",
                    f"it is above autoscaler.caps.{name}, which binds first",
                    "Lower it, or raise the deployment's cap",
                )
