"""What the API server's audit log says of a service account: which requests it made, from where and when."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from e2e.cluster.layout import chosen_name, layout_for

OPERATOR = "system:serviceaccount:kvasir-system:kvasir-operator"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    """One request, as it was answered."""

    verb: str
    group: str
    resource: str
    """With the subresource behind a slash, as in roles."""
    namespace: str
    name: str
    code: int
    allowed: bool
    """By roles. What they allow may still be refused, such as anything new in a namespace that is being deleted."""
    source: str
    """Address that it came from: the pod's."""
    received: datetime

    @property
    def is_write(self) -> bool:
        return self.verb in WRITES


def log_file() -> Path:
    """The log of the cluster that tests make."""
    return layout_for(chosen_name()).audit_log


def requests(file: Path, user: str = OPERATOR) -> Iterator[Request]:
    """The requests of a user to resources, oldest first; those that ask for something else are left out."""
    for part in [*sorted(file.parent.glob("audit-*.log")), file]:
        with part.open() as lines:
            for line in lines:
                event = json.loads(line)
                if event["user"]["username"] == user and "resource" in event.get("objectRef", {}):
                    yield read(event)


def read(event: dict[str, object]) -> Request:
    """One event of audit.k8s.io/v1."""
    target = event["objectRef"]
    status = event.get("responseStatus") or {}
    annotations = event.get("annotations") or {}
    sources = event["sourceIPs"]
    assert isinstance(target, dict)
    assert isinstance(status, dict)
    assert isinstance(annotations, dict)
    assert isinstance(sources, list)
    resource = target["resource"] + (f"/{target['subresource']}" if "subresource" in target else "")
    return Request(
        verb=str(event["verb"]),
        group=target.get("apiGroup", ""),
        resource=resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=int(status.get("code", 0)),
        allowed=annotations.get("authorization.k8s.io/decision") == "allow",
        source=sources[0],
        received=datetime.fromisoformat(str(event["requestReceivedTimestamp"])),
    )
