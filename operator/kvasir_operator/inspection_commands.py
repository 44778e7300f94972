"""Commands for people that look and change nothing: why a service has as many replicas as it has, and replay."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiClient
from pydantic import ValidationError

from kvasir_operator.api.field_errors import from_validation_error
from kvasir_operator.api.v1alpha1 import InferenceService, InferenceServiceStatus
from kvasir_operator.cluster import SERVICES_OF_OURS, Cluster
from kvasir_operator.connection import default_home, load_configuration
from kvasir_operator.scaling.explain import explain
from kvasir_operator.scaling.record import RecordError, read_decisions, replay

TIMEOUT_S: Final = 15.0
FAILURE: Final = 1
USAGE_ERROR: Final = 2


class CommandError(ValueError):
    """Arguments or objects that make no sense."""


def split_address(address: str) -> tuple[str, str]:
    """Namespace and name of `NAMESPACE/NAME`; raises CommandError."""
    namespace, slash, name = address.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise CommandError(f"the service must be given as NAMESPACE/NAME, got {address!r}")
    return namespace, name


async def explain_service(address: str) -> str:
    """Why that service has its replicas. Raises CommandError, ApiError or OSError."""
    namespace, name = split_address(address)
    configuration = await load_configuration(os.environ, default_home())
    async with ApiClient(configuration) as client:
        manifest = await Cluster(client, _never_write, TIMEOUT_S).get(SERVICES_OF_OURS, namespace, name)
    return explain_manifest(manifest)


def explain_manifest(manifest: dict[str, Any]) -> str:
    """The same for an object at hand; raises CommandError where it cannot be read."""
    try:
        service = InferenceService.from_manifest(manifest)
        status = InferenceServiceStatus.model_validate(manifest.get("status") or {})
    except ValidationError as error:
        raise CommandError("; ".join(map(str, from_validation_error(error)))) from error
    return explain(service, status, datetime.now(UTC))


def replay_file(path: Path) -> int:
    """Decide again what is recorded in a file (`-`: standard input), and compare; the exit status.

    0: all the same; 1: some differ, or cannot be read; 2: there are none.
    """
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    count = different = 0
    try:
        for decision in read_decisions(text.splitlines(keepends=True)):
            found = replay(decision)
            count += 1
            different += not found.same
            verdict = "same" if found.same else f"DIFFERS: now {found.decision.to} ({found.decision.verdict})"
            print(f"{decision.time:%Y-%m-%d %H:%M:%S} {decision.from_} → {decision.to}: {verdict}")
    except (RecordError, ValidationError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return FAILURE
    if count == 0:
        print(f"{path}: holds no decisions", file=sys.stderr)
        return USAGE_ERROR
    print(f"{count} decisions, {different} differ")
    return FAILURE if different else 0


def _never_write() -> None:
    raise CommandError("these commands only look")
