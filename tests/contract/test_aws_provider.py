"""The AWS adapter keeps the contract of every provider, over the sandbox's EC2 with real boto3."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.aws_driver import AwsDriver, aws_driver
from tests.contract.provider_contract import ProviderContract


class TestAwsProvider(ProviderContract):
    @pytest.fixture
    async def driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsDriver]:
        async with aws_driver(tmp_path, monkeypatch) as one:
            yield one
