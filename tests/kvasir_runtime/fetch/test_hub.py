"""Revisions of the hub, over its own protocol."""

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.fetcher import fetch
from tests.kvasir_runtime.fetch.helpers import MakeRequest, Recorder, model_files, safetensors
from tests.kvasir_runtime.fetch.servers import HubHandler, Site, serving


def hub(**changes: str) -> Site:
    files = model_files() | {"README.md": b"# hello", "pytorch_model.bin": b"pickle"}
    return Site({f"/org/tiny/{name}": data for name, data in files.items()}, token=changes.get("token"))


def test_a_revisions_files_are_read_from_its_commit(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(hub(token="secret"), HubHandler) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": "secret"}
        complete = fetch(request_for("hf://org/tiny@v1", environment=environment), recorder)
    assert {file.name for file in complete.files} == set(model_files())
    files = [path for _, path, _ in server.requests if not path.startswith("/api/")]
    assert files
    assert all(f"/resolve/{HubHandler.COMMIT}/" in path for path in files)


def test_large_files_are_verified_against_the_hubs_digest(
    request_for: MakeRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(self: HubHandler, name: str, content: bytes) -> dict[str, object]:
        return {"rfilename": name, "size": len(content), "lfs": {"sha256": "0" * 64, "size": 1, "pointerSize": 1}}

    monkeypatch.setattr(HubHandler, "sibling", lying)
    with serving(hub(), HubHandler) as server, pytest.raises(KvasirError, match="has SHA-256") as caught:
        fetch(request_for("hf://org/tiny", environment={"HF_ENDPOINT": server.url}), recorder)
    assert caught.value.report.cause is Cause.WEIGHTS_CORRUPT


def test_a_broken_transfer_is_continued(request_for: MakeRequest, recorder: Recorder) -> None:
    site = hub()
    site.files["/org/tiny/model.safetensors"] = safetensors(300_000)
    site.break_after["/org/tiny/model.safetensors"] = 100_000
    with serving(site, HubHandler) as server:
        request = request_for("hf://org/tiny", environment={"HF_ENDPOINT": server.url})
        fetch(request, recorder)
    path = f"/org/tiny/resolve/{HubHandler.COMMIT}/model.safetensors"
    assert server.ranges(path) == ["", "bytes=100000-"]
    assert (request.folder / "model.safetensors").read_bytes() == safetensors(300_000)


@pytest.mark.parametrize(
    ("uri", "token", "cause", "said"),
    [
        ("hf://org/tiny@v9", "secret", Cause.MODEL_NOT_FOUND, "no such revision"),
        ("hf://org/other", "secret", Cause.MODEL_NOT_FOUND, "does not exist, or is private"),
        ("hf://org/tiny", "", Cause.SOURCE_FORBIDDEN, "refuses access"),
    ],
)
def test_refusals_name_what_is_missing(
    request_for: MakeRequest, recorder: Recorder, uri: str, token: str, cause: Cause, said: str
) -> None:
    with serving(hub(token="secret"), HubHandler) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": token}
        with pytest.raises(KvasirError, match=said) as caught:
            fetch(request_for(uri, environment=environment), recorder)
    assert caught.value.report.cause is cause
    assert caught.value.report.remedy


def test_a_hub_that_is_away_is_given_up(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(hub(), HubHandler) as server:
        gone = server.url
    with pytest.raises(KvasirError) as caught:
        fetch(request_for("hf://org/tiny", environment={"HF_ENDPOINT": gone}, attempts=2), recorder)
    assert caught.value.report.cause is Cause.SOURCE_UNREACHABLE
