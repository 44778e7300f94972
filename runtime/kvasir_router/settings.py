"""What a router is told by its command line and environment; which replicas there are, the operator tells it later."""

import argparse
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvasir_runtime.contract.engine_args import Bytes, Names, Seconds, flag_name
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.router_api import Policy
from kvasir_runtime.validation import explain

ENV_PREFIX: Final = "KVASIR_ROUTER_"


class RouterSettings(BaseModel):
    """Each field is a flag and a variable `KVASIR_ROUTER_…`; flags win. Durations may be written `90s` or `5m`."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    host: str = Field(default="0.0.0.0", description="address of both ports")
    port: int = Field(default=8000, ge=1, le=65535, description="port for users")
    admin_port: int = Field(default=8001, ge=1, le=65535, description="port for the operator: probes and /admin")
    admin_token_file: str | None = Field(default=None, description="file with the bearer token of /admin; none: off")
    endpoints_file: str | None = Field(
        default=None, description="file with what PUT /admin/config takes, read at the start and when it changes"
    )
    endpoints_dns: str | None = Field(
        default=None,
        pattern=r"^[^\s/]+:\d{1,5}$",
        description="HOST:PORT; every address of HOST is a replica, until a configuration is pushed",
    )
    policy: Policy = Field(
        default=Policy.PREFIX_AFFINITY, description="PrefixAffinity, LeastLoad or RoundRobin, for --endpoints-dns"
    )
    state_file: str | None = Field(
        default=None, description="file in which the last pushed configuration is kept for the next start"
    )

    api_key: Names = Field(default=[], description="keys that users must present; empty: none needed")
    api_key_file: str | None = Field(default=None, description="file with one key a line, read again when it changes")
    max_streams_per_key: int | None = Field(
        default=None, ge=1, description="completions that one API key may have under way; default: no bound of its own"
    )
    max_inflight_requests: int = Field(default=8192, ge=1, description="requests beyond which new ones get 429")
    max_body_bytes: Bytes = Field(default=32 * 1024 * 1024, description="largest body of a request")
    max_buffered_bytes: Bytes = Field(
        default=512 * 1024 * 1024, description="bodies of all requests under way beyond which new ones get 429"
    )

    max_held_requests: int = Field(default=256, ge=0, description="requests held before the first push")
    hold_timeout: Seconds = Field(default=60.0, description="how long these are held")
    session_header: str = Field(default="X-Session-Id", min_length=1, description="header that names a session")

    connect_timeout: Seconds = Field(default=2.0, gt=0, description="time in which a replica must take a connection")
    response_timeout: Seconds = Field(
        default=900.0, gt=0, description="time without a byte after which an answer is given up"
    )
    health_interval: Seconds = Field(default=5.0, description="time between health checks of a replica; 0: none")
    drain_delay: Seconds = Field(
        default=5.0, description="how long new requests are still taken after SIGTERM, while others learn of it"
    )
    drain_timeout: Seconds = Field(default=300.0, description="how long running requests may finish after that")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["auto", "json", "pretty"] = Field(default="auto", description="auto: pretty on a terminal")

    @model_validator(mode="after")
    def _check_across_fields(self) -> "RouterSettings":
        if self.port == self.admin_port:
            msg = f"port and admin_port must differ, both are {self.port}"
            raise ValueError(msg)
        if self.max_streams_per_key is not None and not self.api_key and self.api_key_file is None:
            raise ValueError("max_streams_per_key counts by API key and needs api_key or api_key_file")
        return self


def variable(field: str) -> str:
    """`admin_port` → `KVASIR_ROUTER_ADMIN_PORT`."""
    return ENV_PREFIX + field.upper()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field; values stay unparsed strings until `read_settings` checks them."""
    for name, field in RouterSettings.model_fields.items():
        default = field.get_default()
        shown = "" if default in (None, "", []) else f" (default: {default})"
        parser.add_argument(flag_name(name), dest=name, default=argparse.SUPPRESS, help=f"{field.description}{shown}")


def read_settings(namespace: argparse.Namespace, environ: Mapping[str, str]) -> RouterSettings:
    """Merge flags and environment; raises KvasirError(InvalidArguments) with flag, bound and value."""
    fields = RouterSettings.model_fields
    flags = {name: value for name, value in vars(namespace).items() if name in fields}
    variables = {name: environ[variable(name)] for name in fields if environ.get(variable(name))}
    try:
        return RouterSettings.model_validate({**variables, **flags})
    except ValidationError as error:
        lines = [_describe(detail, flags) for detail in error.errors(include_url=False)]
        raise KvasirError(Cause.INVALID_ARGUMENTS, "; ".join(lines), "see kvasir-router --help") from None


def _describe(detail: Any, flags: Mapping[str, object]) -> str:
    text = explain(detail["type"], detail["msg"], detail["input"])
    if not detail["loc"]:
        return text
    name = str(detail["loc"][0])
    return f"{flag_name(name) if name in flags else variable(name)} {text}"
