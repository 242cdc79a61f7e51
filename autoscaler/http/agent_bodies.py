"""What agents send, validated and bounded: see docs/agent-protocol.md. Unknown keys are of newer agents: ignored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(max_length=8192)]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


LONGEST_LINE = 160


def last_line(output: str) -> str:
    """The last line of a program's output that says anything, without what would steer a terminal or a page."""
    lines = ("".join(char if char.isprintable() else " " for char in line).strip() for line in output.splitlines())
    return next((line[:LONGEST_LINE] for line in reversed(list(lines)) if line), "")


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Runner(_Body):
    name: Text
    state: Text = ""


class _About(_Body):
    """What an agent says of its machine. Informative: a job that is root may have said it."""

    metadata: Text = ""


class HelloBody(_Body):
    provider: Text
    batch: Text
    claim: Hex
    evidence: dict[Text, Text] = Field(max_length=32)
    runner: _Runner | None = None
    agent: _About = _About()


class AssignmentBody(_Body):
    instance: Text


class EventBody(_Body):
    seq: int = Field(ge=0, lt=2**62)
    at: float
    kind: Annotated[str, StringConstraints(max_length=64)]
    detail: dict[Text, Text] = Field(default_factory=dict, max_length=32)


class HookBody(_Body):
    """The detail of `hook_ended`, which comes as texts."""

    seconds: float = Field(ge=0, le=3600, allow_inf_nan=False)
    outcome: Literal["ok", "failed", "timed_out", "job_ended"]
    exit_code: int | None = Field(None, ge=-64, le=255)


class EventsBody(_Body):
    instance: Text
    events: list[EventBody] = Field(max_length=256)
