"""What the operator knows of the cluster: the objects of its services, indexed by service.

Fed by watch events, by the answers to its own writes, and by lists. An older version never replaces a newer one, so
it does not matter in which order these arrive, or how often. Keys are uids: an object that was made anew under the
same name is another object.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kvasir_operator.cluster import BUDGETS, NETWORK_POLICIES, PODS, REVISIONS, SERVICES, SERVICES_OF_OURS, Kind
from kvasir_operator.placement.inventory import devices_of
from kvasir_operator.resources import names
from kvasir_operator.scaling.ownership import read_claims

Manifest = Mapping[str, Any]

KINDS: Final = (SERVICES_OF_OURS, PODS, SERVICES, REVISIONS, BUDGETS, NETWORK_POLICIES)
"""Kinds that are watched and kept. All but our own carry the label of their service. Secrets are not among them: an
operator that may list the Secrets of a cluster may do too much."""

CLAIMS: Final = "claims"
"""Key under which an InferenceService that is kept says who set its replicas, in place of `managedFields`."""

_NEVER_AGAIN: Final = 1 << 64
_REMEMBERED_DELETIONS: Final = 10_000
"""Uids of deleted objects that are kept, so that a late answer does not bring one back."""


class ServiceKey(NamedTuple):
    """An InferenceService by address."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Store:
    """Objects by kind and uid, and by the service they belong to. Changed by `put`, `remove` and `compare` alone."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[str, Manifest]] = {kind: {} for kind in KINDS}
        self._by_service: dict[ServiceKey, dict[Kind, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._deleted: dict[str, int] = {}
        self._changes: dict[ServiceKey, int] = defaultdict(int)
        self.version = 0
        """Rises with every change of any object."""

    def put(self, kind: Kind, manifest: Manifest) -> ServiceKey | None:
        """Keep this version of an object; returns its service if that is news, else None."""
        key, uid = key_of(kind, manifest), manifest["metadata"]["uid"]
        known = self._objects[kind].get(uid)
        newest = version_of(known) if known is not None else self._deleted.get(uid, -1)
        if key is None or version_of(manifest) <= newest:
            return None
        for namesake in self._namesakes(key, kind, manifest):
            if version_of(namesake) > version_of(manifest):
                return None
            self.remove(kind, namesake["metadata"]["uid"])
        self._deleted.pop(uid, None)
        kept = self._objects[kind][uid] = _trim(kind, manifest)
        self._by_service[key][kind].add(uid)
        if kind == BUDGETS and known is not None and _same(known, kept):
            return None
        self._changes[key] += 1
        self.version += 1
        return key

    def _namesakes(self, key: ServiceKey, kind: Kind, manifest: Manifest) -> list[Manifest]:
        """Other objects of that name: of two, the older one has gone, since there can be only one."""
        name, uid = manifest["metadata"]["name"], manifest["metadata"]["uid"]
        return [
            each
            for each in self.of_service(key, kind)
            if each["metadata"]["name"] == name and each["metadata"]["uid"] != uid
        ]

    def remove(self, kind: Kind, uid: str, version: int = _NEVER_AGAIN) -> ServiceKey | None:
        """Forget an object that is gone as of `version`; returns its service if it was known."""
        self._deleted[uid] = version
        while len(self._deleted) > _REMEMBERED_DELETIONS:
            del self._deleted[next(iter(self._deleted))]
        manifest = self._objects[kind].pop(uid, None)
        key = key_of(kind, manifest) if manifest is not None else None
        if key is not None:
            self._by_service[key][kind].discard(uid)
            self._changes[key] += 1
            self.version += 1
            if not any(self._by_service[key].values()):
                del self._by_service[key], self._changes[key]
        return key

    def compare(self, kind: Kind, present: Iterable[str], version: str, namespace: str | None) -> set[ServiceKey]:
        """Forget objects that a whole list of `version` does not hold and that are not younger than it."""
        listed, limit = set(present), _number(version)
        ghosts = [
            uid
            for uid, manifest in self._objects[kind].items()
            if uid not in listed
            and version_of(manifest) <= limit
            and namespace in (None, manifest["metadata"]["namespace"])
        ]
        return {key for uid in ghosts if (key := self.remove(kind, uid, limit)) is not None}

    def service(self, key: ServiceKey) -> Manifest | None:
        """The InferenceService of that name."""
        return next(iter(self.of_service(key, SERVICES_OF_OURS)), None)

    def of_service(self, key: ServiceKey, kind: Kind) -> list[Manifest]:
        """The objects that bear the service's label, in no order; whoever owns them."""
        index = self._by_service.get(key)
        return [self._objects[kind][uid] for uid in index[kind]] if index is not None and kind in index else []

    def changes(self, key: ServiceKey) -> int:
        """Rises with every change of an object of the service."""
        return self._changes.get(key, 0)

    def all(self, kind: Kind) -> Iterator[Manifest]:
        """Every object of a kind."""
        return iter(self._objects[kind].values())

    def services_on(self, node: str) -> set[ServiceKey]:
        """The services that have a pod on a node."""
        pods = (pod for pod in self._objects[PODS].values() if pod["spec"].get("nodeName") == node)
        return {key for pod in pods if (key := key_of(PODS, pod)) is not None}

    def services(self) -> Iterator[ServiceKey]:
        """Every InferenceService that is known."""
        return (key for key, index in self._by_service.items() if index.get(SERVICES_OF_OURS))


def key_of(kind: Kind, manifest: Manifest) -> ServiceKey | None:
    """The service that an object belongs to; None for one that is not ours."""
    metadata = manifest["metadata"]
    if kind == SERVICES_OF_OURS:
        return ServiceKey(metadata["namespace"], metadata["name"])
    service = (metadata.get("labels") or {}).get(names.SERVICE_LABEL)
    return ServiceKey(metadata["namespace"], service) if service else None


def version_of(manifest: Manifest) -> int:
    """The resource version as a number: all API servers count with etcd's, and since 1.35 it is promised."""
    return _number(manifest["metadata"].get("resourceVersion", ""))


def owner_uid(manifest: Manifest) -> str:
    """Uid of the controller that owns the object; empty without one."""
    owners = manifest["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0


_DROPPED_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"


def _trim(kind: Kind, manifest: Manifest) -> Manifest:
    """Leave out what is never read and takes most of the memory."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations and _DROPPED_ANNOTATION in annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _DROPPED_ANNOTATION}
    trimmed = {**manifest, "metadata": metadata}
    if kind == SERVICES_OF_OURS:
        trimmed[CLAIMS] = read_claims(manifest["metadata"], names.OPERATOR)
    if kind == BUDGETS:
        trimmed.pop("status", None)  # how many pods are healthy, which changes whenever a pod does
    if kind == PODS:
        trimmed["spec"] = _trim_pod_spec(manifest.get("spec", {}))
    return trimmed


def _same(one: Manifest, other: Manifest) -> bool:
    """Whether two versions differ in nothing that is kept but their number."""
    version = {"resourceVersion": ""}
    return {**one, "metadata": one["metadata"] | version} == {**other, "metadata": other["metadata"] | version}


_READ_OF_DEVICE_PODS: Final = ("nodeSelector", "affinity", "tolerations", "priority")


def _trim_pod_spec(spec: Manifest) -> Manifest:
    """Keep the node, and of a pod that asks for devices what says where it may go."""
    kept: dict[str, Any] = {"nodeName": spec.get("nodeName", "")}
    devices = devices_of(spec)
    if devices:
        kept["containers"] = [{"resources": {"limits": devices}}]
        kept |= {key: spec[key] for key in _READ_OF_DEVICE_PODS if key in spec}
    return kept
