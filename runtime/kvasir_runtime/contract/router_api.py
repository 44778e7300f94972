"""What the operator port of a router takes and answers.

The operator pushes the whole picture (`PUT /admin/config`); the router says how it fares (`GET /admin/state`). A router
that has restarted has another `boot_id` and is told again.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_ENDPOINTS = 4096

Share = Annotated[float, Field(ge=0, le=100)]
"""Percent."""


class _Message(BaseModel):
    # A newer router may add fields: an older operator must still read the rest, and the other way round.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Policy(StrEnum):
    """How a request finds its replica."""

    PREFIX_AFFINITY = "PrefixAffinity"
    LEAST_LOAD = "LeastLoad"
    ROUND_ROBIN = "RoundRobin"


class RouterEndpoint(_Message):
    """One replica: `address` is `host:port` of its user port.

    `load_tokens` are the KV tokens in use and the prompt tokens that wait, as its state told them; None: not known.
    `max_concurrency` is how many requests it is warmed for at the same time; held requests are let go at that rate.
    `adapters` are those that it serves (None: not known), `resident` those of them that are on its device.
    """

    name: str = Field(min_length=1, max_length=253)
    address: str = Field(min_length=3, max_length=300)
    revision: str = ""
    draining: bool = False
    load_tokens: float | None = Field(default=None, ge=0)
    max_concurrency: int | None = Field(default=None, ge=1)
    adapters: list[str] | None = Field(default=None, max_length=4096)
    resident: list[str] = Field(default=[], max_length=4096)

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            msg = f"must be host:port with a port of 1 to 65535, got {address!r}"
            raise ValueError(msg)
        return address


class RouterConfig(_Message):
    """`PUT /admin/config`: the whole picture, replaced at once. `version` is any text, given back by the state.

    `weights`: percent of the requests by revision; revisions that are not named share what is left. Empty: all alike.
    While there is no replica, up to `max_held_requests` wait for `hold_timeout_s` each; the others are told to come
    back after `cold_start_s`, as long as the last starts took.
    """

    version: str = Field(default="", max_length=256)
    endpoints: list[RouterEndpoint] = Field(max_length=MAX_ENDPOINTS)
    policy: Policy = Policy.PREFIX_AFFINITY
    weights: dict[str, Share] = Field(default={}, max_length=64)
    max_held_requests: int = Field(default=256, ge=0, le=100_000)
    hold_timeout_s: float = Field(default=180.0, ge=0, le=86_400)
    cold_start_s: float | None = Field(default=None, ge=0)

    @field_validator("endpoints")
    @classmethod
    def _names_differ(cls, endpoints: list[RouterEndpoint]) -> list[RouterEndpoint]:
        names = [endpoint.name for endpoint in endpoints]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            msg = f"names must differ, more than one is called {', '.join(twice)}"
            raise ValueError(msg)
        return endpoints


class CircuitState(StrEnum):
    """Closed: requests pass. Open: none does. Half-open: one may try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class RouterEndpointState(_Message):
    """How one replica looks from this router. `answers` is what its last health check found."""

    name: str
    inflight: int
    load_tokens: float
    circuit: CircuitState
    answers: bool
    draining: bool


class RouterState(_Message):
    """`GET /admin/state`. Seconds and counts of this process alone.

    `config_version` is that of the picture it routes by, None before the first. `idle_s` counts from the last request
    that finished, or from the start; 0 while requests are in flight or held.
    """

    boot_id: str
    config_version: str | None
    draining: bool
    inflight: int
    held: int
    held_for_s: float = 0.0
    idle_s: float
    finished: int
    endpoints: list[RouterEndpointState] = Field(default_factory=list)
