"""The demo's machines: kept apart as well as this host can; plain processes where it cannot, without being asked."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoscaler.sandbox.demo_cloud_local import choose_isolation
from providers.local_isolation import SEARCH_PATH

CHOOSE = """\
import pathlib, sys
sys.path[:0] = sys.argv[2:]
from autoscaler.sandbox.demo_cloud_local import choose_isolation
print("chose", choose_isolation(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_where_isolation_works_the_demo_uses_it(folder: Path) -> None:
    assert choose_isolation(folder) == "auto"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to hide bubblewrap")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no Python that everybody can run")
def test_an_ordinary_user_without_bubblewrap_gets_plain_processes(folder: Path) -> None:
    os.chown(folder, 65534, 65534)
    modules = [str(Path(__file__).parents[2]), *(path for path in sys.path if path.endswith("site-packages"))]
    hidden = "mount --bind /bin/false /usr/bin/bwrap && exec setpriv --reuid 65534 --regid 65534 --clear-groups --"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{hidden} "$@"', "-", "/usr/bin/python3", "-c", CHOOSE, str(folder), *modules],
        capture_output=True, text=True, timeout=60, check=False, cwd="/", env={"PATH": SEARCH_PATH},
    )  # fmt: skip
    assert "chose process" in done.stdout, done.stderr
