"""AWS's query protocols: form-encoded parameters in, XML out, as EC2 ("ec2") and STS and IAM ("query") speak them.

Owns the shape of requests and answers, not their meaning. A parameter that no handler reads is refused: what the
sandbox does not know it must not ignore.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

EC2_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
STS_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
IAM_NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"
_HEADER = '<?xml version="1.0" encoding="UTF-8"?>\n'
_ENVELOPE = frozenset({"Action", "Version"})
_NOT_FINGERPRINTED = _ENVELOPE | {"ClientToken", "DryRun"}


class AwsError(Exception):
    """A refusal as a client sees it: code, message, HTTP status. `query_code` is what an older protocol called it."""

    def __init__(self, code: str, message: str, *, status: int = 400, query_code: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.query_code = query_code or code


class ConnectionLost(Exception):
    """What was asked for has happened; nobody hears of it."""


# --------------------------------------------------------------------------- requests


class Parameters:
    """The parameters of one request, or of one structure within it: "Foo.1.Bar" below the prefix "Foo.1."."""

    def __init__(self, flat: Mapping[str, str], *, prefix: str = "", read: set[str] | None = None) -> None:
        self._flat = flat
        self._prefix = prefix
        self._read: set[str] = set() if read is None else read

    @classmethod
    def parse(cls, body: bytes) -> "Parameters":
        """Raises AwsError(MalformedQueryString)."""
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True)
        except ValueError as error:
            raise AwsError("MalformedQueryString", "The query string is malformed") from error
        return cls(dict(pairs))

    @property
    def action(self) -> str:
        return self._flat.get("Action", "")

    def text(self, name: str, default: str = "") -> str:
        """The value, or the default where it is absent."""
        key = self._prefix + name
        self._read.add(key)
        return self._flat.get(key, default)

    def required(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise AwsError("MissingParameter", f"The request must contain the parameter {self._prefix}{name}")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.number(name, default))

    def number(self, name: str, default: float = 0) -> float:
        value = self.text(name)
        try:
            return float(value) if value else default
        except ValueError as error:
            message = f"Value ({value}) for parameter {self._prefix}{name} is invalid. Expected a number."
            raise AwsError("InvalidParameterValue", message) from error

    def flag(self, name: str, default: bool = False) -> bool:
        return self.text(name, str(default).lower()) == "true"

    def texts(self, name: str) -> list[str]:
        """A list of plain values: "Foo.1", "Foo.2"."""
        return [self.text(f"{name}.{index}") for index in self._indexes(name)]

    def structure(self, name: str) -> "Parameters":
        """A structure; empty where it is absent."""
        return Parameters(self._flat, prefix=f"{self._prefix}{name}.", read=self._read)

    def structures(self, name: str) -> list["Parameters"]:
        """A list of structures: "Foo.1.Bar", "Foo.2.Bar"."""
        return [self.structure(f"{name}.{index}") for index in self._indexes(name)]

    def has_any(self, starts: tuple[str, ...]) -> bool:
        """Whether a parameter's name begins with one of these."""
        return any(key.startswith(starts) for key in self._flat)

    def __bool__(self) -> bool:
        return any(key.startswith(self._prefix) for key in self._flat)

    def _indexes(self, name: str) -> Iterator[int]:
        start = f"{self._prefix}{name}."
        found = {key[len(start) :].split(".", 1)[0] for key in self._flat if key.startswith(start)}
        return iter(sorted(int(index) for index in found if index.isdigit()))

    def fingerprint(self) -> str:
        """What makes two requests with one client token the same request."""
        return "&".join(f"{key}={value}" for key, value in sorted(self._flat.items()) if key not in _NOT_FINGERPRINTED)

    def complete(self) -> None:
        """Call when all is read and allowed, before anything happens.

        Raises AwsError: UnknownParameter for what nobody has asked about, DryRunOperation for a dry run."""
        is_dry_run = self.flag("DryRun")
        for key in self._flat:
            if key not in self._read and key not in _ENVELOPE:
                raise AwsError("UnknownParameter", f"The parameter {key} is not recognized")
        if is_dry_run:
            message = "Request would have succeeded, but DryRun flag is set."
            raise AwsError("DryRunOperation", message, status=412)


# --------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Raw:
    """XML that is rendered already."""

    xml: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A list whose elements are not called "item"."""

    element: str
    values: "Sequence[Xml]" = field(default_factory=tuple)


Xml: TypeAlias = "str | int | float | datetime | Raw | Named | Sequence[Xml] | Mapping[str, Xml] | None"


def instant(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def render(name: str, value: Xml, *, element: str = "item") -> str:
    """One element by its wire name; None is left out, lists hold `element`s."""
    return "" if value is None else f"<{name}>{_content(value, element)}</{name}>"


def _content(value: Xml, element: str) -> str:
    # Most values are texts: asked for first, as ten thousand machines have a hundred each.
    if isinstance(value, str):
        return escape(value) if "&" in value or "<" in value or ">" in value else value
    match value:
        case Raw(xml):
            return xml
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case Mapping():
            return "".join([render(key, item, element=element) for key, item in value.items()])
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case Named():
            return "".join([render(value.element, item, element=element) for item in value.values])
        case None:
            return ""
        case _:
            return "".join([render(element, item, element=element) for item in value])


def ec2_answer(action: str, value: Mapping[str, Xml], *, request_id: str) -> str:
    inner = render("requestId", request_id) + "".join(render(key, item) for key, item in value.items())
    return f'{_HEADER}<{action}Response xmlns="{EC2_NAMESPACE}">{inner}</{action}Response>'


def ec2_failure(error: AwsError, *, request_id: str) -> str:
    inner = render("Code", error.code) + render("Message", error.message)
    return f"{_HEADER}<Response><Errors><Error>{inner}</Error></Errors><RequestID>{request_id}</RequestID></Response>"


def query_answer(action: str, value: Mapping[str, Xml], *, namespace: str, request_id: str) -> str:
    result = render(f"{action}Result", value, element="member")
    about = render("ResponseMetadata", {"RequestId": request_id})
    return f'{_HEADER}<{action}Response xmlns="{namespace}">{result}{about}</{action}Response>'


def query_failure(error: AwsError, *, namespace: str, request_id: str) -> str:
    side = "Sender" if error.status < 500 else "Receiver"
    inner = render("Error", {"Type": side, "Code": error.code, "Message": error.message})
    return f'{_HEADER}<ErrorResponse xmlns="{namespace}">{inner}{render("RequestId", request_id)}</ErrorResponse>'
