"""Objects below a prefix, over S3's own protocol."""

import dataclasses
import hashlib

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import s3_source
from kvasir_runtime.fetch.fetcher import fetch
from kvasir_runtime.fetch.s3_source import S3Source
from kvasir_runtime.fetch.source import Access
from kvasir_runtime.fetch.uri import S3Address
from tests.kvasir_runtime.fetch.helpers import MakeRequest, Recorder, model_files
from tests.kvasir_runtime.fetch.servers import S3Handler, Site, serving

FOLDER = "/models/llms/tiny"


def bucket(files: dict[str, bytes]) -> Site:
    return Site({f"{FOLDER}/{name}": data for name, data in files.items()} | {"/models/llms/tiny-2/config.json": b"{}"})


def credentials(server: Site, key: str = "good") -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "secret"}


def test_the_objects_of_a_prefix_are_fetched(request_for: MakeRequest, recorder: Recorder) -> None:
    extra = {"pytorch_model.bin": b"pickle", "tokens/vocab.txt": b"one"}
    with serving(bucket(model_files() | extra), S3Handler) as server:
        request = request_for("s3://models/llms/tiny", environment=credentials(server))
        complete = fetch(request, recorder)
    assert {file.name for file in complete.files} == set(model_files()) | {"tokens/vocab.txt"}
    assert (request.folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
    assert recorder.done == recorder.total == complete.size


def test_a_bucket_without_prefix(request_for: MakeRequest, recorder: Recorder) -> None:
    site = Site({f"/models/{name}": data for name, data in model_files().items()})
    with serving(site, S3Handler) as server:
        complete = fetch(request_for("s3://models", environment=credentials(server)), recorder)
    assert {file.name for file in complete.files} == set(model_files())


def test_large_objects_come_in_ranges_of_one_version(
    request_for: MakeRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_source, "RANGE", 65536)
    with serving(bucket(model_files()), S3Handler) as server:
        fetch(request_for("s3://models/llms/tiny", environment=credentials(server)), recorder)
    ranges = server.ranges(f"{FOLDER}/model.safetensors")
    assert ranges == ["bytes=0-65535", "bytes=65536-131071", "bytes=131072-196607", "bytes=196608-200082"]


def test_an_object_replaced_meanwhile_is_noticed() -> None:
    with serving(bucket(model_files()), S3Handler) as server:
        source = S3Source(S3Address("models", "llms/tiny"), Access(credentials(server), 5.0))
        file = next(file for file in source.list_files() if file.name == "model.safetensors")
        server.files[f"{FOLDER}/model.safetensors"] = bytes(200_083)
        with pytest.raises(KvasirError, match="was replaced while it was read") as caught:
            b"".join(source.open(file, 0).chunks)
    assert caught.value.report.cause is Cause.WEIGHTS_CORRUPT


def test_checksums_in_the_prefix_are_used(request_for: MakeRequest, recorder: Recorder) -> None:
    files = model_files()
    files["SHA256SUMS"] = f"{hashlib.sha256(b'other').hexdigest()}  model.safetensors\n".encode()
    with serving(bucket(files), S3Handler) as server, pytest.raises(KvasirError, match="has SHA-256") as caught:
        fetch(request_for("s3://models/llms/tiny", environment=credentials(server)), recorder)
    assert caught.value.report.cause is Cause.WEIGHTS_CORRUPT


@pytest.mark.parametrize(
    ("uri", "key", "cause"),
    [
        ("s3://models/llms/tiny", "bad", Cause.SOURCE_FORBIDDEN),
        ("s3://models/nothing", "good", Cause.MODEL_NOT_FOUND),
        ("s3://elsewhere/llms/tiny", "good", Cause.MODEL_NOT_FOUND),
    ],
)
def test_refusals_are_final_and_say_what_to_do(
    request_for: MakeRequest, recorder: Recorder, uri: str, key: str, cause: Cause
) -> None:
    with serving(bucket(model_files()), S3Handler) as server, pytest.raises(KvasirError) as caught:
        fetch(request_for(uri, environment=credentials(server, key)), recorder)
    assert caught.value.report.cause is cause
    assert "AWS_" in caught.value.report.remedy


def test_an_endpoint_that_does_not_answer_is_given_up(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(bucket({}), S3Handler) as server:
        environment = credentials(server)
    request = request_for("s3://models/llms/tiny", environment=environment, attempts=1)
    request = dataclasses.replace(request, access=dataclasses.replace(request.access, timeout=0.2))
    with pytest.raises(KvasirError) as caught:
        fetch(request, recorder)
    assert caught.value.report.cause is Cause.SOURCE_UNREACHABLE
