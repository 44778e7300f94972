"""Static volumes: a folder of the machine as a PersistentVolume. No StorageClass: claims name the class `""`."""

from pathlib import Path

from e2e.cluster.api import Api, Object
from e2e.cluster.errors import UsageError


def add(api: Api, name: str, folder: Path, capacity: str, claim: str | None) -> str:
    """Makes the volume and, if named as NAMESPACE/NAME, a claim bound to it; says what was made.

    Raises:
        UsageError: the folder is none, the claim's name has no namespace, or the volume exists already.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder on this machine")
    namespace, slash, claim_name = (claim or "").partition("/")
    if claim and not (slash and namespace and claim_name):
        raise UsageError(f"--claim {claim}: expected NAMESPACE/NAME")
    reference = {"namespace": namespace, "name": claim_name} if claim else None
    if not api.create("/api/v1/persistentvolumes", volume(name, folder, capacity, reference)):
        raise UsageError(f"volume {name} exists already")
    if claim:
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        api.create(path, volume_claim(claim_name, name, capacity))
    return f"volume {name}: {folder.resolve()}, {capacity}" + (f", claimed by {claim}" if claim else "")


def volume(name: str, folder: Path, capacity: str, claim: dict[str, str] | None) -> Object:
    """A PersistentVolume; when the claim goes, the folder and what is in it stay."""
    spec: Object = {
        "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
        "capacity": {"storage": capacity},
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "hostPath": {"path": str(folder.resolve()), "type": "Directory"},
    }
    if claim:
        spec["claimRef"] = claim
    return {"metadata": {"name": name}, "spec": spec}


def volume_claim(name: str, volume_name: str, capacity: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": volume_name,
            "resources": {"requests": {"storage": capacity}},
        },
    }
