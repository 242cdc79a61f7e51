"""The configuration of a daemon under test: short intervals, both forges, local machines, two pools."""

import json

CONFIG = """
[autoscaler]
name = "{name}"
listen = "127.0.0.1:{public}"
admin_listen = "127.0.0.1:{admin}"
public_url = "http://127.0.0.1:{public}"
store = "{store}"
admin_tokens = [{{ file = "{folder}/admin-token" }}]
tick = "0.3s"
list_instances = "0.5s"
list_runners = "1s"

[[forge]]
name = "github"
kind = "github"
url = "{github}"
api_url = "{github}"
credentials = {{ token = {{ file = "{folder}/github-token" }} }}
webhook_secret = {{ file = "{folder}/webhook-secret" }}
scopes = ["acme"]
poll = "{poll}"

[[forge]]
name = "gitlab"
kind = "gitlab"
url = "{gitlab}"
credentials = {{ token = {{ file = "{folder}/gitlab-token" }} }}
webhook_secret = {{ file = "{folder}/webhook-secret" }}
scopes = ["tools"]
poll = "{poll}"

[[provider]]
name = "here"
kind = "local"
state_dir = "{machines}"
isolation = "process"
keep_ended_s = 30
boot = {{ min_s = {boot_s}, max_s = {boot_s} }}
capacity_pools = [
    {{ machine_type = "m", zone = "z", cpus = 1, memory_gib = 1, arch = "x86_64", price_usd_hour = 0.1, slots = 9 }},
]

[[image]]
name = "runner"
[image.references.local]
github_runner = "{images}/actions-runner"
gitlab_runner = "{images}/gitlab-runner/gitlab-runner"
{pools}
"""
POOL = """
[[pool]]
name = "{name}"
forges = ["{forge}"]
labels = {labels}
image = "runner"
providers = ["here"]
max = {max}
idle_timeout = "1s"
boot_timeout = "30s"
max_job_runtime = "5m"
[pool.shape]
arch = "x86_64"
"""


def pool_text(name: str, forge: str, *labels: str, max: int = 4) -> str:  # noqa: A002 - the key's own name
    return POOL.format(name=name, forge=forge, labels=json.dumps(labels), max=max)


POOLS = pool_text("linux", "github", "linux") + pool_text("data", "gitlab", "data")
