"""A small HTTP/1.1 load generator on raw connections: prepared requests in, statuses and times out."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's fate. Times are this machine's monotonic seconds, comparable between processes."""

    status: int
    sent_at: float
    answered_at: float

    @property
    def took_s(self) -> float:
        return self.answered_at - self.sent_at


def post(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A request as it goes over the wire."""
    own = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in own.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


class Sender:
    """Kept-alive connections to one port. `send` uses them all at once, one request on each at a time."""

    def __init__(self, connections: Sequence[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        self._connections = connections

    @classmethod
    async def connect(cls, port: int, *, connections: int) -> "Sender":
        return cls([await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)])

    async def send(self, requests: Sequence[bytes]) -> list[Answer]:
        """Every request as soon as a connection is free; answers in no particular order."""
        waiting = iter(requests)
        answers = await asyncio.gather(*(_drive(*connection, waiting) for connection in self._connections))
        return [answer for some in answers for answer in some]

    async def aclose(self) -> None:
        for _, writer in self._connections:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self._connections), return_exceptions=True)


async def _drive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: Iterator[bytes]) -> list[Answer]:
    answers = []
    for request in waiting:
        sent_at = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _content_length(head)
        if length:
            await reader.readexactly(length)
        answers.append(Answer(int(head[9:12]), sent_at, time.monotonic()))
    return answers


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0
