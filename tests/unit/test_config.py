"""What the configuration means once read, and how mistakes across sections are told."""

from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest

from autoscaler import config
from autoscaler.config import Address, Caps, Config, ConfigError, PoolConfig
from autoscaler.spi import Bounds, ForgeName, PoolName, ProviderName, Secret
from tests.config_files import ENVIRON, EXAMPLE, minimal_document, replaced, write, write_app_key


@pytest.fixture
def example(tmp_path: Path) -> Config:
    write_app_key(tmp_path)
    path = tmp_path / "config.toml"
    path.write_text(EXAMPLE.read_text())
    return config.load(path, environ=ENVIRON)


def load(document: dict[str, Any], folder: Path) -> Config:
    return config.load(write(document, folder), environ=ENVIRON)


def problems(document: dict[str, Any], folder: Path) -> dict[str, str]:
    """Key to message and remedy of each problem."""
    with pytest.raises(ConfigError) as caught:
        load(document, folder)
    return {one.key: f"{one.message}. {one.remedy}" for one in caught.value.problems}


def changed(*steps: str | int, to: Any) -> dict[str, Any]:
    return replaced(minimal_document(), steps, to)


def exposed(**keys: Any) -> dict[str, Any]:
    """Without admin tokens."""
    document = minimal_document()
    del document["autoscaler"]["admin_tokens"]
    document["autoscaler"] |= keys
    return document


def with_pool(**keys: Any) -> dict[str, Any]:
    document = minimal_document()
    document["pool"].append({**document["pool"][0], **keys})
    return document


def test_values_are_typed(example: Config) -> None:
    pool = example.pool(PoolName("linux"))

    assert example.autoscaler.listen == Address(host="0.0.0.0", port=8480)
    assert example.autoscaler.caps == Caps(usd_per_hour=40.0, usd_per_day=400.0, instances=200)
    assert example.autoscaler.retention == timedelta(days=30)
    assert pool.labels == ("linux", "self-hosted", "x64")
    assert pool.shape.cpus == Bounds(low=2, high=8)
    assert pool.shape.memory_gib == Bounds(low=4, high=32)
    assert pool.shape.disk_gib == 30
    assert pool.wait.target == timedelta(seconds=60)
    assert pool.stock.schedule[0].days == frozenset(range(5))
    assert (pool.stock.schedule[0].start, pool.stock.schedule[0].end) == (time(7), time(19))
    assert example.provider_caps[ProviderName("here")].instances == 8
    assert example.telling_forges == {"github", "gitlab"}
    assert example.image("ubuntu").reference_for(example.providers[0]) == {
        "github_runner": "/opt/actions-runner",
        "gitlab_runner": "/usr/bin/gitlab-runner",
    }


def test_secrets_are_resolved_and_never_shown(example: Config) -> None:
    forge = example.forges[0]

    assert forge.webhook_secrets == (Secret(ENVIRON["GITHUB_WEBHOOK_SECRET"]),)
    assert forge.credentials["app_id"] == "123456"
    private_key = forge.credentials["private_key"]
    assert isinstance(private_key, Secret)
    assert private_key.reveal().startswith("-----BEGIN RSA PRIVATE KEY-----")
    shown = repr(example)
    assert not [text for text in ENVIRON.values() if text in shown]
    assert "BEGIN RSA" not in shown


def test_defaults_fill_in_what_is_left_out(tmp_path: Path) -> None:
    loaded = load(minimal_document(), tmp_path)

    assert loaded.pools == (
        PoolConfig(name=PoolName("linux"), image="ubuntu", labels=("linux",), providers=(ProviderName("here"),)),
    )
    assert loaded.autoscaler.admin_listen == Address(host="127.0.0.1", port=9480)
    assert loaded.autoscaler.tick == timedelta(seconds=10)
    assert loaded.forges[0].poll == timedelta(seconds=60)
    assert loaded.warnings == ()


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    document = changed("pool", 0, "min", to=-1)
    document["pool"][0]["wait"] = {"target": "soon", "quantil": 0.9}
    document["forge"][0]["poll"] = 60
    document["provder"] = []
    del document["image"][0]["name"]

    found = problems(document, tmp_path)

    assert {
        "pool[0].min",
        "pool[0].wait.target",
        "pool[0].wait.quantil",
        "forge[0].poll",
        "provder",
        "image[0].name",
    } <= set(found)
    assert 'Did you mean "quantile"?' in found["pool[0].wait.quantil"]
    assert 'Did you mean "provider"?' in found["provder"]
    assert '"soon" is not a duration' in found["pool[0].wait.target"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[autoscaler\n", "this is not TOML"),
        (b"name = '\xff'", "not UTF-8"),
        (b"", "there is none"),
    ],
)
def test_unreadable_file_is_told(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=says):
        config.load(path, environ={})


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*No such file"):
        config.load(tmp_path / "nowhere.toml", environ={})


def test_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    document = changed("forge", 0, "webhook_secret", to="hunter2hunter2")
    document["forge"][0]["credentials"] = {"token": "ghp_literalliteral"}

    found = problems(document, tmp_path)

    assert "{ env =" in found["forge[0].webhook_secret"]
    assert "hunter2" not in str(found)
    document = changed("forge", 0, "credentials", to={"token": "ghp_literalliteral"})
    found = problems(document, tmp_path)
    assert "a secret stands in the file" in found["forge[0].credentials.token"]
    assert "literalliteral" not in str(found)


def test_missing_and_empty_variables_are_named(tmp_path: Path) -> None:
    document = changed("forge", 0, "webhook_secret", to=[{"env": "NOT_THERE"}, {"env": "EMPTY"}])

    with pytest.raises(ConfigError) as caught:
        config.load(write(document, tmp_path), environ={**ENVIRON, "EMPTY": " "})

    found = {one.key: one.message for one in caught.value.problems}
    assert found == {
        "forge[0].webhook_secret[0]": 'the environment variable "NOT_THERE" is not set',
        "forge[0].webhook_secret[1]": 'the environment variable "EMPTY" is empty',
    }


def test_secret_files_are_read_beside_the_configuration(tmp_path: Path) -> None:
    secret = tmp_path / "hook"
    secret.touch(mode=0o600)
    secret.write_text("from-a-file\n")

    loaded = load(changed("forge", 0, "webhook_secret", to={"file": "hook"}), tmp_path)

    assert loaded.forges[0].webhook_secrets == (Secret("from-a-file"),)
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe", "does not hold a text")]
)
def test_unusable_secret_file_is_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "hook").write_bytes(content)

    found = problems(changed("forge", 0, "webhook_secret", to={"file": "hook"}), tmp_path)

    assert says in found["forge[0].webhook_secret"]
    assert str(tmp_path / "hook") in found["forge[0].webhook_secret"]


def test_secret_that_everybody_can_read_is_warned_of(tmp_path: Path) -> None:
    secret = tmp_path / "hook"
    secret.write_text("from-a-file")
    secret.chmod(0o644)

    loaded = load(changed("forge", 0, "webhook_secret", to={"file": "hook"}), tmp_path)

    assert [one.key for one in loaded.warnings] == ["forge[0].webhook_secret"]
    assert "chmod o-r" in loaded.warnings[0].remedy


@pytest.mark.parametrize(
    ("document", "key", "says"),
    [
        (changed("pool", 0, "image", to="ubunto"), "pool[0].image", 'Did you mean "ubuntu"?'),
        (changed("pool", 0, "providers", to=["hare"]), "pool[0].providers[0]", 'there is no provider "hare"'),
        (changed("pool", 0, "forges", to=["gitlab"]), "pool[0].forges[0]", 'Known here: "github"'),
        (changed("forge", 0, "kind", to="gitub"), "forge[0].kind", 'Did you mean "github"?'),
        (changed("provider", 0, "kind", to="openstack"), "provider[0].kind", '"local"'),
        (changed("image", 0, "references", to={"aws2": {"ami": "x"}}), "image[0].references.aws2", "no provider"),
        (changed("image", 0, "arch", to="arm64"), "pool[0].shape.arch", 'its image "ubuntu" is for "arm64"'),
        (changed("pool", 0, "min", to=11), "pool[0].min", "above max, 10"),
        (changed("pool", 0, "stock", to={"hot": 11}), "pool[0].stock.hot", "above the pool's max"),
        (changed("pool", 0, "repos", to=["elsewhere/*"]), "pool[0].repos[0]", "below one of: org"),
        (exposed(admin_listen="0.0.0.0:9480"), "autoscaler.admin_listen", "no admin_tokens"),
        (exposed(), "autoscaler.admin_tokens", "without a token each could use the admin API"),
        (changed("autoscaler", "public_url", to="ftp://x"), "autoscaler.public_url", "http or https"),
        (changed("autoscaler", "store", to="mysql://x/y"), "autoscaler.store", "mysql"),
        (changed("autoscaler", "store", to="postgresql://u:geheim@h/d"), "autoscaler.store", "PGPASSWORD"),
        (changed("autoscaler", "caps", to={"instances": 0}), "autoscaler.caps.instances", "above 0"),
        (changed("pool", 0, "spot", to={"max_price": float("inf")}), "pool[0].spot.max_price", "finite"),
        (changed("pool", 0, "labels", to=[]), "pool[0].labels", "at least one label"),
        (with_pool(), "pool[1].name", "taken by pool[0]"),
        (with_pool(name="other"), "pool[1].priority", "same labels, same priority"),
        (changed("forge", to={"name": "x"}), "forge", "[[forge]]"),
        (changed("pool", to=[]), "pool", "Write at least one section"),
    ],
)
def test_contradiction_is_named_at_its_key(document: dict[str, Any], key: str, says: str, tmp_path: Path) -> None:
    found = problems(document, tmp_path)

    assert says in found[key]
    assert "geheim" not in str(found)


@pytest.mark.parametrize(
    "keys",
    [{"priority": 1}, {"labels": ["linux", "big"]}, {"repos": ["org/one"]}],
    ids=["priority", "labels", "repos"],
)
def test_pools_that_can_be_told_apart_are_allowed(keys: dict[str, Any], tmp_path: Path) -> None:
    document = with_pool(name="other", **keys)
    document["pool"][0]["repos"] = ["org/two", "!org/one"]

    assert len(load(document, tmp_path).pools) == 2


def test_admin_listener_off_loopback_is_warned_of(tmp_path: Path) -> None:
    loaded = load(changed("autoscaler", "admin_listen", to="0.0.0.0:9480"), tmp_path)

    assert [one.key for one in loaded.warnings] == ["autoscaler.admin_listen"]


def test_unencrypted_public_url_is_refused_where_machines_are_elsewhere(tmp_path: Path) -> None:
    document = changed("autoscaler", "public_url", to="http://ci.example.com")
    document["provider"].append({"name": "far", "kind": "aws", "regions": ["eu-central-1"]})

    assert "unencrypted" in problems(document, tmp_path)["autoscaler.public_url"]


def test_unencrypted_public_url_is_warned_of(tmp_path: Path) -> None:
    loaded = load(changed("autoscaler", "public_url", to="http://ci.example.com"), tmp_path)

    assert [one.key for one in loaded.warnings] == ["autoscaler.public_url"]


def test_image_without_a_reference_for_a_provider_of_its_pool_is_named(tmp_path: Path) -> None:
    document = minimal_document()
    document["provider"].append({"name": "there", "kind": "local"})
    document["image"][0]["references"] = {"there": {"github_runner": "/x"}}

    found = problems(document, tmp_path)

    assert "[image.references.here] or [image.references.local]" in found["image[0].references"]


def test_pool_serves_repos_by_globs_and_exclusions() -> None:
    pool = PoolConfig(
        name=PoolName("p"),
        image="i",
        labels=("l",),
        providers=(ProviderName("x"),),
        forges=(ForgeName("a"),),
        repos=("Org/*", "!org/secret*"),
    )

    assert pool.serves_repo("org/web")
    assert pool.serves_repo("ORG/sub/web")
    assert not pool.serves_repo("org/Secret-things")
    assert not pool.serves_repo("other/web")
    assert pool.serves_forge(ForgeName("a"))
    assert not pool.serves_forge(ForgeName("b"))
