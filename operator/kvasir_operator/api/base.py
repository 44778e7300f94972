"""What every model of the API is made of: camelCase names, Kubernetes' quantities, durations and times."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PlainSerializer
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from kvasir_runtime.contract.quantities import parse_bytes, parse_duration

QUANTITY_PATTERN: Final = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([kMGTPE]|[KMGTPE]i)?$"
DURATION_PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"
NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""Names of InferenceServices become those of Kubernetes Services, which must begin with a letter."""
NAME_MAX_LENGTH: Final = 45
"""With a revision (10) and a suffix (5), the name of a pod stays within the 63 characters of a host name."""
DNS_LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


class ApiModel(BaseModel):
    """A part of the API: snake_case in Python, camelCase in YAML, never changed in place.

    Fields that a newer API may add are left out, so that an older operator still reads the rest.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
    )

    def to_manifest(self) -> dict[str, Any]:
        """Render what was set, as JSON-ready camelCase; None counts as unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


class Quantity(str):
    """A byte count as Kubernetes writes it, such as `8Gi`; `bytes` is its value."""

    __slots__ = ()

    @property
    def bytes(self) -> int:
        """The value in bytes, rounded up."""
        return parse_bytes(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read a string that Kubernetes would read; its JSON schema is a string with a pattern."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(pattern=QUANTITY_PATTERN))


class Duration(str):
    """A span of time such as `90s` or `1h30m`; `seconds` is its value."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        """The value in seconds."""
        return parse_duration(str(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read numbers with units; its JSON schema is a string with a pattern."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(pattern=DURATION_PATTERN))


def _whole_utc_seconds(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


def format_time(time: datetime) -> str:
    """Write a time as Kubernetes does: `2026-03-01T12:00:00Z`, without fractions of a second."""
    return _whole_utc_seconds(time).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[AwareDatetime, AfterValidator(_whole_utc_seconds), PlainSerializer(format_time, when_used="json")]
"""A moment with a time zone, kept in UTC to the second, as `metav1.Time`."""

DnsLabel = Annotated[str, Field(pattern=DNS_LABEL_PATTERN, min_length=1, max_length=63)]
"""A name made of lower-case letters, digits and dashes."""

DnsName = Annotated[str, Field(pattern=DNS_NAME_PATTERN, min_length=1, max_length=253)]
"""The name of another object in the same namespace."""
