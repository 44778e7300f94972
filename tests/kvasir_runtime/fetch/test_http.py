"""Folders behind HTTP: found by name or by checksums, continued, verified, complete at the end."""

import hashlib
import json
from typing import Any

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.fetcher import fetch
from kvasir_runtime.fetch.marker import read_marker
from tests.kvasir_runtime.fetch.helpers import MakeRequest, Recorder, Waits, model_files, safetensors
from tests.kvasir_runtime.fetch.servers import Site, serving

FOLDER = "/models/tiny"


def site(files: dict[str, bytes] | None = None, **changes: Any) -> Site:
    content = model_files() if files is None else files
    return Site({f"{FOLDER}/{name}": data for name, data in content.items()}, **changes)


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def failure(caught: pytest.ExceptionInfo[KvasirError]) -> Cause:
    return caught.value.report.cause


def test_a_folder_without_a_list_is_found_by_the_usual_names(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site()) as server:
        request = request_for(f"{server.url}{FOLDER}/")
        complete = fetch(request, recorder)
    assert {path.name: path.read_bytes() for path in request.folder.glob("[!.]*")} == model_files()
    assert sorted(path.name for path in request.folder.glob(".*")) == [".complete", ".lock"]
    assert recorder.done == recorder.total == complete.size


def test_the_digest_is_that_of_the_sorted_sha256sum_listing(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site()) as server:
        complete = fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    listing = sums(dict(sorted(model_files().items())))
    assert complete.digest == hashlib.sha256(listing).hexdigest()


def test_a_complete_folder_is_not_fetched_again(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site()) as server:
        request = request_for(f"{server.url}{FOLDER}")
        first = fetch(request, recorder)
        server.requests.clear()
        assert fetch(request, recorder) == first
        assert server.requests == []
    assert "is complete" in recorder.notes[-1]


@pytest.mark.parametrize("damage", ["size", "missing", "marker"])
def test_a_damaged_folder_is_fetched_again(request_for: MakeRequest, recorder: Recorder, damage: str) -> None:
    with serving(site()) as server:
        request = request_for(f"{server.url}{FOLDER}")
        fetch(request, recorder)
        weights, marker = request.folder / "model.safetensors", request.folder / ".complete"
        match damage:
            case "size":
                weights.write_bytes(weights.read_bytes()[:-1])
            case "missing":
                weights.unlink()
            case "marker":
                marker.write_text(marker.read_text().replace("model.safetensors", "other.safetensors"))
        fetch(request, recorder)
    assert weights.read_bytes() == model_files()["model.safetensors"]
    assert read_marker(request.folder) is not None


def test_another_model_takes_the_place_of_the_first(request_for: MakeRequest, recorder: Recorder) -> None:
    files = {f"/one/{name}": data for name, data in model_files().items()}
    files |= {"/two/config.json": b"{}", "/two/model.safetensors": safetensors(9, 2)}
    with serving(Site(files)) as server:
        request = request_for(f"{server.url}/one")
        fetch(request, recorder)
        (request.folder / "notes.md").write_text("mine")
        fetch(request_for(f"{server.url}/two"), recorder)
    names = sorted(path.name for path in request.folder.glob("[!.]*"))
    assert names == ["config.json", "model.safetensors", "notes.md"]


def test_a_broken_connection_is_continued_where_it_broke(
    request_for: MakeRequest, recorder: Recorder, waits: Waits
) -> None:
    weights = f"{FOLDER}/model.safetensors"
    with serving(site(break_after={weights: 70_000})) as server:
        request = request_for(f"{server.url}{FOLDER}")
        fetch(request, recorder)
    assert server.ranges(weights) == ["", "bytes=70000-"]
    assert (request.folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
    assert waits.seconds == [1.0]
    assert any("continuing at 68.4Ki" in note for note in recorder.notes)


def test_the_next_process_continues_too(request_for: MakeRequest, recorder: Recorder) -> None:
    weights = f"{FOLDER}/model.safetensors"
    with serving(site(break_after={weights: 70_000})) as server:
        with pytest.raises(KvasirError) as caught:
            fetch(request_for(f"{server.url}{FOLDER}", attempts=1, workers=1), recorder)
        assert failure(caught) is Cause.SOURCE_UNREACHABLE
        server.requests.clear()
        fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert server.ranges(weights) == ["bytes=70000-"]
    assert server.ranges(f"{FOLDER}/config.json") == []  # was whole already


def test_a_file_that_changed_meanwhile_starts_over(request_for: MakeRequest, recorder: Recorder) -> None:
    weights = f"{FOLDER}/model.safetensors"
    with serving(site(break_after={weights: 70_000})) as server:
        with pytest.raises(KvasirError):
            fetch(request_for(f"{server.url}{FOLDER}", attempts=1), recorder)
        server.files[weights] = safetensors(200_000, value=2)
        request = request_for(f"{server.url}{FOLDER}")
        fetch(request, recorder)
    assert (request.folder / "model.safetensors").read_bytes() == safetensors(200_000, value=2)


def test_a_server_without_validators_starts_over(request_for: MakeRequest, recorder: Recorder) -> None:
    weights = f"{FOLDER}/model.safetensors"
    with serving(site(break_after={weights: 70_000}, validators=False)) as server:
        request = request_for(f"{server.url}{FOLDER}")
        fetch(request, recorder)
    assert server.ranges(weights) == ["", ""]
    assert (request.folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]


def test_a_source_that_stays_away_is_given_up_within_bounds(
    request_for: MakeRequest, recorder: Recorder, waits: Waits
) -> None:
    with serving(site()) as server:
        gone = server.url
    with pytest.raises(KvasirError, match=r"gave up .* after 3 attempts") as caught:
        fetch(request_for(f"{gone}{FOLDER}"), recorder)
    assert failure(caught) is Cause.SOURCE_UNREACHABLE
    assert waits.seconds == [1.0, 2.0]


def test_busy_servers_are_asked_again_when_they_say(request_for: MakeRequest, recorder: Recorder, waits: Waits) -> None:
    with serving(site(statuses={f"{FOLDER}/SHA256SUMS": [503, 429]})) as server:
        fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert waits.seconds == [1.0, 7.0]


def test_checksums_name_the_files_and_verify_them(request_for: MakeRequest, recorder: Recorder) -> None:
    files = model_files() | {"vocab/extra.txt": b"one two", "weights.bin": b"pickle", "unlisted.json": b"{}"}
    listed = {name: data for name, data in files.items() if name != "unlisted.json"}
    with serving(site(files | {"SHA256SUMS": sums(listed)})) as server:
        request = request_for(f"{server.url}{FOLDER}")
        complete = fetch(request, recorder)
    assert {file.name for file in complete.files} == set(model_files()) | {"vocab/extra.txt"}
    assert (request.folder / "vocab" / "extra.txt").read_bytes() == b"one two"


def test_a_wrong_checksum_leaves_nothing_behind(request_for: MakeRequest, recorder: Recorder) -> None:
    files = model_files()
    files["SHA256SUMS"] = sums(files | {"model.safetensors": b"other"})
    with serving(site(files)) as server:
        request = request_for(f"{server.url}{FOLDER}")
        with pytest.raises(KvasirError, match=r"model.safetensors has SHA-256 \w+, expected \w+") as caught:
            fetch(request, recorder)
    assert failure(caught) is Cause.WEIGHTS_CORRUPT
    assert not (request.folder / "model.safetensors").exists()
    assert read_marker(request.folder) is None


def test_a_checksum_of_the_whole_is_compared(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site()) as server:
        uri = f"{server.url}{FOLDER}"
        with pytest.raises(KvasirError, match=f"expected {'0' * 64}") as caught:
            fetch(request_for(uri, sha256="0" * 64), recorder)
        digest = hashlib.sha256(sums(dict(sorted(model_files().items())))).hexdigest()
        assert fetch(request_for(uri, sha256=digest), recorder).digest == digest
    assert failure(caught) is Cause.WEIGHTS_CORRUPT


def test_shards_are_found_through_the_index(request_for: MakeRequest, recorder: Recorder) -> None:
    files = {"config.json": b"{}", "a-1.safetensors": safetensors(8), "a-2.safetensors": safetensors(9)}
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}}
    ).encode()
    with serving(site(files)) as server:
        complete = fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert {file.name for file in complete.files} == set(files)


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "weights.bin", "a\\b.safetensors"])
def test_an_index_cannot_name_files_elsewhere(request_for: MakeRequest, recorder: Recorder, target: str) -> None:
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps({"weight_map": {"x": target}}).encode()}
    with (
        serving(site(files)) as server,
        pytest.raises(KvasirError, match="no safetensors file of its folder") as caught,
    ):
        fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert failure(caught) is Cause.MODEL_INVALID


def test_a_missing_shard_is_named(request_for: MakeRequest, recorder: Recorder) -> None:
    index = json.dumps({"weight_map": {"x": "gone.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    with serving(site(files)) as server, pytest.raises(KvasirError, match=r"gone\.safetensors does not") as caught:
        fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert failure(caught) is Cause.MODEL_NOT_FOUND


def test_an_adapter_is_found_by_its_own_names(request_for: MakeRequest, recorder: Recorder) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors()}
    with serving(site(files)) as server:
        complete = fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert {file.name for file in complete.files} == set(files)


def test_a_folder_without_a_model_says_what_is_looked_for(request_for: MakeRequest, recorder: Recorder) -> None:
    said = r"holds neither config\.json nor adapter_config\.json"
    with serving(site({"index.html": b"hello"})) as server, pytest.raises(KvasirError, match=said) as caught:
        fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert failure(caught) is Cause.MODEL_NOT_FOUND


def test_refused_access_names_the_secret(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site(token="right")) as server:
        uri = f"{server.url}{FOLDER}"
        with pytest.raises(KvasirError, match=r"refuses access \(401\)") as caught:
            fetch(request_for(uri, environment={"KVASIR_FETCH_TOKEN": "wrong"}), recorder)
        fetch(request_for(uri, environment={"KVASIR_FETCH_TOKEN": "right"}), recorder)
    assert failure(caught) is Cause.SOURCE_FORBIDDEN
    assert "KVASIR_FETCH_TOKEN" in caught.value.report.remedy


def test_servers_that_refuse_heads_are_asked_for_one_byte(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site(heads=False)) as server:
        complete = fetch(request_for(f"{server.url}{FOLDER}"), recorder)
    assert recorder.total == complete.size


@pytest.mark.parametrize(
    ("name", "content", "cause", "said"),
    [
        ("model.safetensors", safetensors()[:-1], Cause.WEIGHTS_CORRUPT, "its header announces"),
        ("model.safetensors", b"<html>not here</html>", Cause.WEIGHTS_CORRUPT, "a header of"),
        ("config.json", b"<html>", Cause.MODEL_INVALID, "config.json is no JSON"),
    ],
)
def test_what_is_no_model_inside_is_refused(
    request_for: MakeRequest, recorder: Recorder, name: str, content: bytes, cause: Cause, said: str
) -> None:
    with serving(site(model_files() | {name: content})) as server:
        with pytest.raises(KvasirError, match=said) as caught:
            fetch(request_for(f"{server.url}{FOLDER}"), recorder)
        assert failure(caught) is cause
        server.files |= {f"{FOLDER}/{key}": data for key, data in model_files().items()}
        fetch(request_for(f"{server.url}{FOLDER}"), recorder)  # the mended upload is fetched, not the old one continued


def test_a_signed_url_keeps_its_query_and_hides_it(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(site()) as server:
        complete = fetch(request_for(f"{server.url}{FOLDER}?signature=secret"), recorder)
    assert complete.uri.endswith(f"{FOLDER}?…")
    assert "secret" not in "".join(recorder.notes)
