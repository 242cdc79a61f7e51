"""Run by durability tests: accepts webhooks into the store at argv[1] without end, and prints the delivery id of each
one once it was acknowledged."""

import asyncio
import os
import sys

from autoscaler.store import open_store
from tests.contract.store_builders import HUB, T0, a_webhook


async def main() -> None:
    store = open_store(sys.argv[1])
    await store.open()

    async def send(sender: int) -> None:
        number = 0
        while True:
            delivery = f"{sender}-{number}"
            if await store.accept(HUB, a_webhook(delivery), T0) is not None:
                os.write(1, f"{delivery}\n".encode())
            number += 1

    await asyncio.gather(*(send(sender) for sender in range(16)))


if __name__ == "__main__":
    asyncio.run(main())
