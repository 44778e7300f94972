"""Where models come from: volumes, mounts, and what the operator's settings allow."""

from collections.abc import Callable

import pytest

from kvasir_operator.api.model import Source
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.sources import (
    ClaimSource,
    FileSource,
    ModelFiles,
    ModelSource,
    RemoteSource,
    check_source,
    model_files,
    parse_source,
)
from kvasir_operator.settings import Settings

MakeService = Callable[..., InferenceService]

ALLOWING = Settings(allow_file_sources=True, file_source_roots=["/srv/models", "/srv/models/llama", "/mnt"])


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("pvc://models", ClaimSource("models", "")),
        ("pvc://models/a/b/", ClaimSource("models", "a/b")),
        ("file:///srv/models/a", FileSource("/srv/models/a")),
        ("file:///srv//models/a/", FileSource("/srv/models/a")),
        ("s3://bucket/prefix", RemoteSource("s3://bucket/prefix")),
        ("hf://org/name@main", RemoteSource("hf://org/name@main")),
        ("https://host/a.tar.gz?sig=1", RemoteSource("https://host/a.tar.gz?sig=1")),
    ],
)
def test_addresses_are_told_apart(uri: str, source: ModelSource) -> None:
    assert parse_source(Source(uri=uri)) == source


def test_a_claim_is_mounted_whole_and_read_only() -> None:
    """A missing folder in it is then the runtime's error, which names it."""
    assert model_files(Source(uri="pvc://models/a/b"), Settings()) == ModelFiles(
        folder="/models/a/b",
        volumes=[{"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
        mounts=[{"name": "model", "mountPath": "/models", "readOnly": True}],
    )
    assert model_files(Source(uri="pvc://models"), Settings()).folder == "/models"


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("file:///srv/models/tiny", "/srv/models"),
        ("file:///srv/models", "/srv/models"),
        ("file:///srv/models/llama/8b", "/srv/models/llama"),
        ("file:///mnt/x", "/mnt"),
    ],
)
def test_a_folder_of_the_node_is_seen_through_the_deepest_allowed_root(uri: str, root: str) -> None:
    """At its own path, so that links between its folders resolve as on the node."""
    assert model_files(Source(uri=uri), ALLOWING) == ModelFiles(
        folder=uri.removeprefix("file://"),
        volumes=[{"name": "model", "hostPath": {"path": root, "type": "Directory"}}],
        mounts=[{"name": "model", "mountPath": root, "readOnly": True}],
    )


def test_other_sources_are_fetched_into_an_empty_folder() -> None:
    assert model_files(Source(uri="hf://org/name@main"), Settings()) == ModelFiles(
        folder="/models/model",
        volumes=[{"name": "model", "emptyDir": {}}],
        mounts=[{"name": "model", "mountPath": "/models", "readOnly": True}],
        fetch_arguments=["fetch", "hf://org/name@main", "/models/model"],
        fetch_mounts=[{"name": "model", "mountPath": "/models"}],
    )


def test_the_folder_may_be_bounded() -> None:
    settings = Settings.from_environment({"KVASIR_OPERATOR_MODEL_VOLUME_SIZE": "50Gi"})
    assert model_files(Source(uri="s3://b/p"), settings).volumes == [
        {"name": "model", "emptyDir": {"sizeLimit": "50Gi"}}
    ]


@pytest.mark.parametrize("uri", ["pvc://models/tiny", "s3://b/p", "hf://org/name", "https://host/x"])
def test_settings_say_nothing_against_sources_that_leave_the_node_alone(uri: str) -> None:
    assert check_source(Source(uri=uri), Settings()) == []


def test_folders_of_nodes_are_off_by_default() -> None:
    [error] = check_source(Source(uri="file:///srv/models/tiny"), Settings())
    assert str(error) == (
        "spec.model.source.uri: needs the operator's setting KVASIR_OPERATOR_ALLOW_FILE_SOURCES to be on, since it "
        'mounts a folder of the node, got "file:///srv/models/tiny"'
    )


@pytest.mark.parametrize("path", ["/etc", "/srv", "/srv/models2", "/srv/models/../../etc", "/"])
def test_folders_outside_the_allowed_roots_are_refused(path: str) -> None:
    source = Source(uri=f"file://{path}" if path != "/" else "file:///.")
    [error] = check_source(source, ALLOWING)
    assert error.problem.startswith(
        "must lie in a folder of the operator's setting KVASIR_OPERATOR_FILE_SOURCE_ROOTS "
        "(/srv/models, /srv/models/llama, /mnt), got "
    )
    with pytest.raises(ValueError, match="must lie in a folder"):
        model_files(source, ALLOWING)


def test_roots_mean_nothing_while_folders_of_nodes_are_off() -> None:
    with pytest.raises(ValueError, match="ALLOW_FILE_SOURCES"):
        model_files(Source(uri="file:///mnt/x"), Settings(file_source_roots=["/mnt"]))


def test_the_field_is_named_as_the_caller_says(make_service: MakeService) -> None:
    service = make_service(adapters=[{"name": "a", "source": {"uri": "file:///a"}}])
    [error] = check_source(service.spec.adapters[0].source, Settings(), "spec.adapters[0].source")
    assert error.path == "spec.adapters[0].source.uri"
