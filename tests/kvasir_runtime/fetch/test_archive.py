"""Archives are unpacked to the model's files alone, wherever their names point."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.archive import unpack
from kvasir_runtime.fetch.fetcher import fetch
from tests.kvasir_runtime.fetch.helpers import MakeRequest, Recorder, model_files
from tests.kvasir_runtime.fetch.servers import Site, serving

LIMIT = 1 << 30


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_gz(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar(files))


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "model.archive"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.mark.parametrize(("ending", "pack"), [("tar", tar), ("tar.gz", tar_gz), ("tgz", tar_gz), ("zip", zipped)])
def test_an_archive_is_fetched_verified_and_unpacked(
    request_for: MakeRequest, recorder: Recorder, ending: str, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    content = pack({f"./tiny/{name}": data for name, data in (model_files() | {"train.py": b"import os"}).items()})
    digest = hashlib.sha256(content).hexdigest()
    with serving(Site({f"/m.{ending}": content})) as server:
        request = request_for(f"{server.url}/m.{ending}", sha256=digest)
        complete = fetch(request, recorder)
        server.requests.clear()
        assert fetch(request_for(f"{server.url}/m.{ending}", sha256=digest), recorder) == complete
        assert server.requests == []
    assert {path.name: path.read_bytes() for path in request.folder.glob("[!.]*")} == model_files()
    assert complete.archive_sha256 == digest


def test_another_archive_than_the_one_named_is_not_unpacked(request_for: MakeRequest, recorder: Recorder) -> None:
    with serving(Site({"/m.tar": tar(model_files())})) as server:
        request = request_for(f"{server.url}/m.tar", sha256="0" * 64)
        with pytest.raises(KvasirError) as caught:
            fetch(request, recorder)
    assert caught.value.report.cause is Cause.WEIGHTS_CORRUPT
    assert [path.name for path in request.folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["../evil.json", "/evil.json", "a/../../evil.json", "..", "a//evil.json"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_names_that_leave_the_folder_refuse_the_archive(
    archive: Path, folder: Path, pack: Callable[[dict[str, bytes]], bytes], name: str
) -> None:
    archive.write_bytes(pack({"config.json": b"{}", name: b"{}"}))
    with pytest.raises(KvasirError, match="leaves its folder") as caught:
        unpack(archive, folder, LIMIT)
    assert caught.value.report.cause is Cause.MODEL_INVALID
    assert list(folder.iterdir()) == []


def test_links_and_devices_are_left_out(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "w") as tarred:
        for name, kind in (("config.json", tarfile.SYMTYPE), ("a.json", tarfile.LNKTYPE), ("b.json", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tarred.addfile(member)
    assert unpack(archive, folder, LIMIT) == []
    assert list(folder.iterdir()) == []


def test_an_archive_that_would_burst_is_refused_before_it_is_unpacked(archive: Path, folder: Path) -> None:
    archive.write_bytes(zipped({"config.json": b" " * 10_000_000}))
    assert archive.stat().st_size < 20_000
    with pytest.raises(KvasirError, match="more than the bound of 1000000 bytes"):
        unpack(archive, folder, 1_000_000)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no archive at all", tar_gz(model_files())[:-2000]])
def test_what_is_no_whole_archive_is_refused(archive: Path, folder: Path, content: bytes) -> None:
    archive.write_bytes(content)
    with pytest.raises(KvasirError, match="cannot be unpacked") as caught:
        unpack(archive, folder, LIMIT)
    assert caught.value.report.cause is Cause.MODEL_INVALID
