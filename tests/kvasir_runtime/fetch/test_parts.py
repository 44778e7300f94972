"""Room on the disk, retries, file headers, markers and progress, each alone."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import fetcher
from kvasir_runtime.fetch.disk import MARGIN, require_room
from kvasir_runtime.fetch.fetcher import fetch
from kvasir_runtime.fetch.http_client import retry_after
from kvasir_runtime.fetch.progress import LineReporter
from kvasir_runtime.fetch.retry import RetryPolicy, Stopped
from kvasir_runtime.fetch.source import TransientError
from kvasir_runtime.fetch.verify import verify_folder, verify_safetensors
from tests.kvasir_runtime.fetch.helpers import MakeRequest, Recorder, Waits, model_files, safetensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in model_files().items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_copied(source: Path, request_for: MakeRequest, recorder: Recorder) -> None:
    (source / "weights.bin").write_bytes(b"pickle")
    complete = fetch(request_for(f"file://{source}"), recorder)
    assert {file.name for file in complete.files} == set(model_files())


@pytest.mark.parametrize(("name", "cause"), [("nowhere", Cause.MODEL_NOT_FOUND), ("empty", Cause.MODEL_NOT_FOUND)])
def test_a_folder_without_a_model(
    tmp_path: Path, request_for: MakeRequest, recorder: Recorder, name: str, cause: Cause
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(KvasirError) as caught:
        fetch(request_for(f"file://{tmp_path / name}"), recorder)
    assert caught.value.report.cause is cause


def test_room_is_asked_for_before_the_first_byte(
    source: Path, request_for: MakeRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "require_room", lambda folder, needed: require_room(folder, needed, lambda _: 1000))
    request = request_for(f"file://{source}")
    with pytest.raises(KvasirError, match=r"needs 195Ki \(\d+ bytes\) more, has 1000 free") as caught:
        fetch(request, recorder)
    assert caught.value.report.cause is Cause.DISK_FULL
    assert caught.value.report.detail["free"] == 1000
    assert not (request.folder / "model.safetensors").exists()


def test_room_leaves_a_margin(tmp_path: Path) -> None:
    require_room(tmp_path, 1000, lambda _: 1000 + MARGIN)
    with pytest.raises(KvasirError):
        require_room(tmp_path, 1001, lambda _: 1000 + MARGIN)


def test_a_model_above_the_bound_is_refused(source: Path, request_for: MakeRequest, recorder: Recorder) -> None:
    with pytest.raises(KvasirError, match="more than the bound of 100000 bytes") as caught:
        fetch(request_for(f"file://{source}", max_size=100_000), recorder)
    assert "--max-size" in caught.value.report.remedy


def test_a_destination_that_cannot_be_made(tmp_path: Path, request_for: MakeRequest, recorder: Recorder) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KvasirError, match="cannot write to"):
        fetch(request_for("file:///anywhere", folder=tmp_path / "file" / "model"), recorder)


def test_a_stop_ends_the_fetch_and_keeps_what_came(source: Path, request_for: MakeRequest, recorder: Recorder) -> None:
    request = request_for(f"file://{source}")
    request.stop.set()
    with pytest.raises(Stopped):
        fetch(request, recorder)
    assert list(request.folder.glob(".partial/model.safetensors.*"))
    fetch(request_for(f"file://{source}"), recorder)


@pytest.mark.parametrize(
    ("failures", "retry_after_seconds", "seconds"),
    [(1, None, 1.0), (2, None, 2.0), (5, None, 16.0), (6, None, 30.0), (1, 7.0, 7.0), (1, 900.0, 30.0)],
)
def test_waits_double_up_to_their_bound(failures: int, retry_after_seconds: float | None, seconds: float) -> None:
    assert RetryPolicy(jitter=lambda: 1.0).delay(failures, retry_after_seconds) == seconds


def test_a_call_is_tried_again_until_it_works(waits: Waits) -> None:
    failures = iter([TransientError("one"), TransientError("two")])

    def ask() -> str:
        for failure in failures:
            raise failure
        return "three"

    assert RetryPolicy(wait=waits, jitter=lambda: 0.5).call(ask, "it") == "three"
    assert waits.seconds == [0.5, 1.0]


def test_a_stop_ends_the_waiting() -> None:
    def fail() -> None:
        raise TransientError("away")

    with pytest.raises(Stopped):
        RetryPolicy(wait=lambda _: True).call(fail, "it")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("Fri, 20 Nov 2026 10:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 09:00:00 GMT", 0.0),
        ("", None),
        ("x", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, datetime(2026, 11, 20, 10, tzinfo=UTC)) == seconds


def with_header(header: object, rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        safetensors()[:-1],
        safetensors() + b"x",
        (1 << 40).to_bytes(8, "little") + b"{}",
        with_header([]),
        with_header({"a": {"dtype": "U8"}}),
        with_header({"a": {"data_offsets": [4, 8]}}, bytes(8)),
        with_header({"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": [2, 8]}}, bytes(8)),
    ],
)
def test_broken_weights_are_told_by_their_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(KvasirError) as caught:
        verify_safetensors(path)
    assert caught.value.report.cause is Cause.WEIGHTS_CORRUPT


@pytest.mark.parametrize("content", [safetensors(), safetensors(0), with_header({"__metadata__": {"format": "pt"}})])
def test_whole_weights_pass(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    verify_safetensors(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.json": b"{}"}, "neither config.json nor adapter_config.json"),
        ({"config.json": b"{}"}, r"no \*\.safetensors file beside it"),
        ({"config.json": b"{"}, "is no JSON"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, "has no weight_map"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'},
            "names x.safetensors, which is not there",
        ),
    ],
)
def test_files_that_are_no_model_together(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KvasirError, match=said) as caught:
        verify_folder(tmp_path, list(files))
    assert caught.value.report.cause is Cause.MODEL_INVALID


def test_progress_is_told_in_lines_at_intervals() -> None:
    now = [0.0]
    out = io.StringIO()
    reporter = LineReporter(out, as_json=False, clock=lambda: now[0])
    reporter.start(2, 40_000_000)
    for _ in range(4):
        now[0] += 2.5
        reporter.advance(5_000_000)
    reporter.finish()
    assert out.getvalue().splitlines() == [
        "fetch: fetching 2 files, 38.1Mi",
        "fetch:  25.0 % of 38.1Mi, 2.0 MB/s, 15 s left",
        "fetch:  50.0 % of 38.1Mi, 2.0 MB/s, 10 s left",
    ]


def test_progress_as_json_is_one_object_a_line() -> None:
    now = [0.0]
    out = io.StringIO()
    reporter = LineReporter(out, as_json=True, clock=lambda: now[0])
    reporter.start(1, None)
    now[0] = 10.0
    reporter.advance(5_000_000)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["fetching 1 files, an unknown number of bytes", "progress"]
    assert (lines[1]["bytes"], lines[1]["mb_per_s"], "percent" in lines[1]) == (5_000_000, 0.5, False)
