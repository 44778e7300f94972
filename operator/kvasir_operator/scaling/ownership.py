"""Who decides how many replicas there are. Kvasir writes `spec.replicas` only while nobody else does.

| the applied manifest has replicas | another wrote /scale | the server records that | replicas are | owner |
|---|---|---|---|---|
| yes | any | any | any | who applies the manifest |
| no | yes | yes | any | who wrote them: an HPA, KEDA's HPA, `kubectl scale` |
| no | no | yes | any | nobody |
| no | unknown | no | not what was set last | somebody, until scaling is taken out of the spec and put back |
| no | unknown | no | what was set last | nobody, or as before |

API servers record the field managers of subresources since Kubernetes 1.22.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvasir_operator.api.v1alpha1 import ScalingStatus

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""Where client-side `kubectl apply` keeps the manifest that a person wrote."""
SOMEBODY: Final = "kubectl scale or an autoscaler"
"""The owner where the server does not record who wrote a subresource."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Who set `spec.replicas`, as far as the object tells: the managers, and whether the server records /scale."""

    manifest: str = ""
    scale: str = ""
    recorded: bool = False


def read_claims(metadata: Mapping[str, Any], manager: str) -> Claims:
    """Read them from the metadata of an InferenceService, whole; `manager` is our own name."""
    entries = [entry for entry in metadata.get("managedFields") or () if entry.get("manager") != manager]
    ours = [entry for entry in metadata.get("managedFields") or () if entry.get("manager") == manager]
    holders = [entry for entry in entries if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})]
    applied = [entry["manager"] for entry in holders if entry.get("operation") == "Apply"]
    if not applied and _states_replicas((metadata.get("annotations") or {}).get(LAST_APPLIED)):
        applied = ["kubectl apply"]
    return Claims(
        manifest=next(iter(applied), ""),
        scale=next((entry["manager"] for entry in holders if entry.get("subresource") == "scale"), ""),
        recorded=any("subresource" in entry for entry in (*entries, *ours)),
    )


def owner_of(claims: Claims, replicas: int, status: ScalingStatus | None) -> str:
    """Who else decides, for people; empty: nobody. `status` says what was set last, and who decided until now."""
    if claims.manifest:
        return f"{claims.manifest} (the manifest states spec.replicas)"
    if claims.recorded or status is None:
        return claims.scale
    if status.owner:
        return status.owner
    set_last = {status.replicas, status.last_decision.to if status.last_decision is not None else None} - {None}
    return SOMEBODY if set_last and replicas not in set_last else ""


def _states_replicas(manifest: str | None) -> bool:
    """Whether the manifest that was applied last has `spec.replicas`; one that is no JSON says nothing."""
    try:
        applied = json.loads(manifest or "{}")
    except ValueError:
        return False
    spec = applied.get("spec") if isinstance(applied, dict) else None
    return isinstance(spec, dict) and "replicas" in spec
