"""The pod that looks at a model before replicas are made: no device, few resources, its result as its last words."""

from typing import Any, Final

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata
from kvasir_operator.resources.pod import common, identity
from kvasir_operator.resources.sources import FileSource, model_files, parse_source
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

Manifest = dict[str, Any]

DEADLINE: Final = 120
"""Seconds after which the kubelet ends an inspection that hangs."""
RESOURCES: Final = {
    "requests": {"cpu": "50m", "memory": "64Mi"},
    "limits": {"memory": "512Mi"},
}
"""Two small files are read. An index of 64 MiB takes some hundred MiB as JSON, for a moment."""


def build_inspection_pod(
    owner: ObjectMeta, template: RevisionTemplate, source_key: str, settings: Settings
) -> Manifest:
    """The manifest of an inspection. Raises ValueError for a source that the settings refuse (see `check_source`)."""
    files = model_files(template.model.source, settings)
    fetched = bool(files.fetch_arguments)
    uri = template.model.source.uri if fetched else f"file://{files.folder}"
    arguments = ["inspect", uri, "--report"]
    if template.model.source.secret_name is not None:
        arguments += ["--secret-dir", names.SOURCE_SECRET_FOLDER]
    volumes = [volume for volume in files.volumes if not fetched or volume["name"] != names.MODEL_VOLUME]
    mounts = [mount for mount in (files.fetch_mounts if fetched else files.mounts) if _is_of(mount, volumes)]
    metadata = owned_metadata(
        owner, names.inspection_pod_name(owner.name, source_key), names.inspection_labels(owner.name)
    )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **_scheduling(template),
            **identity(template),
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": names.INSPECT_CONTAINER,
                    **common(template, settings),
                    "args": arguments,
                    "resources": RESOURCES,
                    "volumeMounts": [{"name": names.TMP_VOLUME, "mountPath": "/tmp"}, *mounts],  # noqa: S108
                }
            ],
            "volumes": [{"name": names.TMP_VOLUME, "emptyDir": {}}, *volumes],
        },
    }


def _scheduling(template: RevisionTemplate) -> Manifest:
    """A folder of a node is where the service's own pods would go; everything else can be read from anywhere."""
    if not isinstance(parse_source(template.model.source), FileSource):
        return {}
    gpu = {"key": names.GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}
    found = {
        "nodeSelector": template.node_selector,
        "tolerations": [*(each.to_manifest() for each in template.tolerations), gpu],
        "affinity": template.affinity.to_manifest() if template.affinity is not None else None,
    }
    return {key: value for key, value in found.items() if value}


def _is_of(mount: Manifest, volumes: list[Manifest]) -> bool:
    return mount["name"] in {volume["name"] for volume in volumes}
