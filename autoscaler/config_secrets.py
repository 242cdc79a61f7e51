"""Secrets by reference: finds every `{ env = "X" }` and `{ file = "..." }` in the raw file and puts a `Secret` there.

Runs before validation, so that a missing variable is reported at its key path, and so that no model ever sees a
secret as text. A reference that cannot be read becomes an empty `Secret`: it has been reported and is not again.
"""

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoscaler.config_fields import BY_REFERENCE
from autoscaler.spi import Secret

Report = Callable[[str, str, str], None]
"""Takes key path, message and remedy."""

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretReader:
    """Where secrets come from. Relative files are looked up beside the configuration, as its author would."""

    environ: Mapping[str, str]
    folder: Path
    fault: Report
    warning: Report

    def resolve(self, value: Any, key: str = "") -> Any:
        """The same document with each reference replaced by its `Secret`."""
        if isinstance(value, list):
            return [self.resolve(one, f"{key}[{index}]") for index, one in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if len(value) == 1 and isinstance(text := value.get("env", value.get("file")), str):
            return Secret(self._from_env(text, key) if "env" in value else self._from_file(text, key))
        return {name: self.resolve(one, f"{key}.{name}" if key else name) for name, one in value.items()}

    def _from_env(self, name: str, key: str) -> str:
        text = self.environ.get(name)
        if text is None:
            self.fault(key, f'the environment variable "{name}" is not set', f"Set {name} for the daemon")
        elif not text.strip():
            self.fault(key, f'the environment variable "{name}" is empty', f"Give {name} a value")
        return (text or "").strip()

    def _from_file(self, name: str, key: str) -> str:
        path = self.folder / name
        remedy = f'Put the secret into "{path}", readable for the daemon\'s user alone'
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                self.fault(key, f'"{path}" is not a regular file', remedy)
                return ""
            text = path.read_bytes()[:_MAX_BYTES].decode().strip()
        except OSError as error:
            self.fault(key, f'"{path}" cannot be read: {error.strerror}', remedy)
            return ""
        except ValueError:
            self.fault(key, f'"{path}" does not hold a text', f"{remedy}. {BY_REFERENCE}")
            return ""
        if not text:
            self.fault(key, f'"{path}" is empty', remedy)
        if mode & stat.S_IROTH:
            self.warning(key, f'every user of this machine can read "{path}"', f'Run: chmod o-r "{path}"')
        return text
