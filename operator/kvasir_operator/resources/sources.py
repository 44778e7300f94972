"""Where a model's files come from: an address read into a type, and what a pod needs to have the files.

| address            | pod                                                                    | model's folder   |
|--------------------|------------------------------------------------------------------------|------------------|
| pvc://claim/path   | the whole claim, read-only, so that a missing folder is the runtime's  | /models/path     |
|                    | error with a name and not the kubelet's                                |                  |
| file:///root/path  | the allowed root that holds it, read-only, so that links in it resolve | /root/path       |
| s3, hf, https      | an empty folder that an init container fills                           | /models/model    |
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from kvasir_operator.api.field_errors import FieldError, show
from kvasir_operator.api.model import Source
from kvasir_operator.resources import names
from kvasir_operator.settings import Settings, env_name

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClaimSource:
    """A folder in a volume claim of the same namespace; `path` is relative and may be empty."""

    claim: str
    path: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """A folder of the node."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """A place that an init container fetches from."""

    uri: str


ModelSource = ClaimSource | FileSource | RemoteSource


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """How a pod gets at the model: `folder` is the path in the runtime's container."""

    folder: str
    volumes: list[Manifest]
    mounts: list[Manifest]
    fetch_arguments: list[str] = field(default_factory=list)
    fetch_mounts: list[Manifest] = field(default_factory=list)


def parse_source(source: Source) -> ModelSource:
    """Tell the kinds of address apart; the API has checked the form."""
    scheme, _, rest = source.uri.partition("://")
    match scheme:
        case "pvc":
            claim, _, path = rest.partition("/")
            return ClaimSource(claim, path.strip("/"))
        case "file":
            return FileSource(str(PurePosixPath(rest)))
        case _:
            return RemoteSource(source.uri)


def check_source(source: Source, settings: Settings, path: str = "spec.model.source") -> list[FieldError]:
    """What the operator's settings say against this source; `path` is the field that holds it."""
    parsed = parse_source(source)
    if not isinstance(parsed, FileSource):
        return []
    if not settings.allow_file_sources:
        switch = env_name("allow_file_sources")
        problem = f"needs the operator's setting {switch} to be on, since it mounts a folder of the node"
        return [FieldError(f"{path}.uri", f"{problem}, got {show(source.uri)}")]
    if allowed_root(parsed, settings) is None:
        roots = ", ".join(settings.file_source_roots)
        problem = f"must lie in a folder of the operator's setting {env_name('file_source_roots')} ({roots})"
        return [FieldError(f"{path}.uri", f"{problem}, got {show(source.uri)}")]
    return []


def allowed_root(source: FileSource, settings: Settings) -> str | None:
    """The folder of the settings that holds the source; the deepest, if several do."""
    path = PurePosixPath(source.path)
    if ".." in path.parts:
        return None
    roots = [root for root in map(PurePosixPath, settings.file_source_roots) if path.is_relative_to(root)]
    return str(max(roots, key=lambda root: len(root.parts))) if roots else None


def model_files(source: Source, settings: Settings) -> ModelFiles:
    """Volumes and mounts for a source; raises ValueError for one that `check_source` refuses."""
    match parse_source(source):
        case ClaimSource() as claim:
            return _from_claim(claim)
        case FileSource() as file:
            root = allowed_root(file, settings) if settings.allow_file_sources else None
            if root is None:
                raise ValueError("; ".join(map(str, check_source(source, settings))))
            return _from_node(file, root)
        case RemoteSource() as remote:
            return _fetched(remote, source, settings)


def _from_claim(source: ClaimSource) -> ModelFiles:
    folder = f"{names.MODELS_FOLDER}/{source.path}".rstrip("/")
    volume = {
        "name": names.MODEL_VOLUME,
        "persistentVolumeClaim": {"claimName": source.claim, "readOnly": True},
    }
    return ModelFiles(folder, [volume], [_mount(names.MODEL_VOLUME, names.MODELS_FOLDER)])


def _from_node(source: FileSource, root: str) -> ModelFiles:
    volume = {"name": names.MODEL_VOLUME, "hostPath": {"path": root, "type": "Directory"}}
    return ModelFiles(source.path, [volume], [_mount(names.MODEL_VOLUME, root)])


def _fetched(remote: RemoteSource, source: Source, settings: Settings) -> ModelFiles:
    size = {"sizeLimit": str(settings.model_volume_size)} if settings.model_volume_size else {}
    volumes: list[Manifest] = [{"name": names.MODEL_VOLUME, "emptyDir": size}]
    mounts: list[Manifest] = [{"name": names.MODEL_VOLUME, "mountPath": names.MODELS_FOLDER}]
    arguments = ["fetch", remote.uri, names.FETCHED_MODEL]
    if source.sha256 is not None:
        arguments += ["--sha256", source.sha256]
    if source.secret_name is not None:
        volumes.append(secret_volume(names.SOURCE_SECRET_VOLUME, source.secret_name))
        mounts.append(_mount(names.SOURCE_SECRET_VOLUME, names.SOURCE_SECRET_FOLDER))
        arguments += ["--secret-dir", names.SOURCE_SECRET_FOLDER]
    return ModelFiles(
        names.FETCHED_MODEL, volumes, [_mount(names.MODEL_VOLUME, names.MODELS_FOLDER)], arguments, mounts
    )


def secret_volume(volume: str, secret: str, key: str | None = None) -> Manifest:
    """A Secret as files that only the pod's group may read; all keys, or one."""
    items = {"items": [{"key": key, "path": key}]} if key else {}
    return {"name": volume, "secret": {"secretName": secret, "defaultMode": 0o440, **items}}


def _mount(volume: str, path: str) -> Manifest:
    return {"name": volume, "mountPath": path, "readOnly": True}
