"""The kinds of keys in `config.toml`: annotated types for pydantic, and the remedy texts they share.

Owns how a raw TOML value becomes a typed one inside a table. Nothing is converted to another type on the quiet.
"""

from collections.abc import Callable, Mapping
from datetime import time, timedelta
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from autoscaler import config_values as values
from autoscaler.config_types import Address
from autoscaler.spi import Bounds, Labels, Secret, label_set

DURATION = 'Write a number with a unit, as in "90s", "5m", "2h" or "30d"'
NAME = 'Write a name of 1 to 40 lower-case letters and digits with single dashes between, as in "linux-large"'
BY_REFERENCE = 'Write { env = "VARIABLE" } or { file = "/run/secrets/x" }: a secret never stands in this file'
YES_NO = "Write true or false"
SHARE = "Write a number from 0 to 1"
MONEY = "Write an amount of US dollars above 0, as in 12.5, or leave the key out for no bound"
COUNT = "Write a whole number, 0 or more"
ARCH = 'Write "x86_64" or "arm64"'
NAMES = 'Write a list of names, as in ["a", "b"]'

_T = TypeVar("_T")


def listed(value: object) -> object:
    """TOML has lists, the values are tuples."""
    return tuple(value) if isinstance(value, list) else value


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    raise ValueError("a secret is expected here, and this is not a reference to one")


def _secrets(value: object) -> tuple[Secret, ...]:
    if isinstance(value, list):
        if not value:
            raise ValueError("the list of secrets is empty")
        return tuple(_secret(one) for one in value)
    return (_secret(value),)


def _text(value: object) -> str:
    text = values.text_of(value)
    if not text.strip():
        raise ValueError("the text is empty")
    return text


def _timezone(value: object) -> str:
    text = _text(value)
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'"{text}" is not a time zone known here') from None
    return text


def _reference(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError("this is not a table with at least one key")
    for key, one in value.items():
        try:
            _text(one)
        except ValueError as error:
            raise ValueError(f'at "{key}", {error}') from None
    return dict(value)


def _credential(value: object) -> "Secret | str":
    """Ids may be numbers; they are texts from here on."""
    if isinstance(value, Secret):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if value <= 0:
            raise ValueError("an id is above 0")
        return str(value)
    return _text(value)


def _labels(value: object) -> Labels:
    if not isinstance(value, list):
        raise ValueError("this is not a list of labels")
    texts = [_text(label) for label in value]
    if any("," in label or label != label.strip() for label in texts):
        raise ValueError("a label holds a comma or outer spaces, which no forge allows")
    return label_set(texts)


Duration = Annotated[timedelta, BeforeValidator(values.parse_positive_duration)]
Name = Annotated[str, BeforeValidator(values.parse_name)]
Text = Annotated[str, BeforeValidator(_text)]
Url = Annotated[str, BeforeValidator(values.parse_url)]
Listener = Annotated[Address, BeforeValidator(values.parse_address)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Money = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Arch = Literal["x86_64", "arm64"]
Names = Annotated[tuple[Name, ...], BeforeValidator(listed)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(listed)]


Globs = Annotated[tuple[Annotated[str, BeforeValidator(values.parse_glob)], ...], BeforeValidator(listed)]
Networks = Annotated[tuple[Annotated[str, BeforeValidator(values.parse_network)], ...], BeforeValidator(listed)]
StoreUrl = Annotated[str, BeforeValidator(values.parse_store)]
Secrets = Annotated[tuple[Secret, ...], BeforeValidator(_secrets)]
Credential = Annotated[Secret | str, BeforeValidator(_credential)]
Reference = Annotated[Mapping[str, str], BeforeValidator(_reference)]
LabelSet = Annotated[Labels, BeforeValidator(_labels)]
Counts = Annotated[Bounds, BeforeValidator(values.parse_counts)]
Sizes = Annotated[Bounds, BeforeValidator(values.parse_sizes)]
Size = Annotated[float, BeforeValidator(values.parse_size)]
Days = Annotated[frozenset[int], BeforeValidator(values.parse_days)]
Hours = Annotated[tuple[time, time], BeforeValidator(values.parse_hours)]
TimeZone = Annotated[str, BeforeValidator(_timezone)]


class Section(BaseModel):
    """A TOML table. Unknown keys are errors; no value is converted to another type on the quiet."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)

    def fill(self, kind: Callable[..., _T], **built: Any) -> _T:
        """The value of this section: its keys as they are, but for those in `built`."""
        return kind(**{**{name: getattr(self, name) for name in type(self).model_fields}, **built})
