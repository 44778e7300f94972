"""`kvasir-runtime fetch`, as an init container runs it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvasir_runtime.__main__ import main
from kvasir_runtime.contract.failures import KvasirError
from kvasir_runtime.fetch.cli import read_secrets
from tests.kvasir_runtime.fetch.helpers import model_files
from tests.kvasir_runtime.fetch.servers import Handler, Site, serving


@pytest.fixture(autouse=True)
def signals():
    """The command installs handlers; they are put back for the tests after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def termination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    monkeypatch.setenv("KVASIR_TERMINATION_LOG", str(path))
    return path


def site() -> Site:
    return Site({f"/m/{name}": data for name, data in model_files().items()}, token="s3cret")


def test_a_fetch_with_a_mounted_secret(tmp_path: Path, termination: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "KVASIR_FETCH_TOKEN").write_text("s3cret\n")
    with serving(site()) as server:
        status = main(["fetch", f"{server.url}/m", str(tmp_path / "model"), "--secret-dir", str(secret)])
    printed = capsys.readouterr().err
    assert status == 0
    assert "4 files, 195Ki, digest " in printed
    assert "s3cret" not in printed
    assert not termination.exists()


def test_a_failure_is_the_termination_message(tmp_path: Path, termination: Path) -> None:
    with serving(site()) as server:
        status = main(["fetch", f"{server.url}/m", str(tmp_path / "model")])
    report = json.loads(termination.read_text())
    assert status == 1
    assert report["cause"] == "SourceForbidden"
    assert "secretName" in report["remedy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sha256", "abc"], "'abc' is no SHA-256"),
        (["--max-size", "lots"], "'lots' is no byte count"),
        (["--workers", "0"], "'0' must be a whole number from 1 to 64"),
        (["--timeout", "0s"], "'0s' must be more than 0 s"),
        (["--secret-dir", "/nowhere"], "--secret-dir /nowhere is no folder"),
    ],
)
def test_a_bad_command_line_names_flag_and_value(
    tmp_path: Path, termination: Path, arguments: list[str], said: str
) -> None:
    assert main(["fetch", "https://host/m", str(tmp_path / "model"), *arguments]) == 2
    report = json.loads(termination.read_text())
    assert report["cause"] == "InvalidArguments"
    assert said in report["message"]


def test_settings_come_from_the_environment_too(
    tmp_path: Path, termination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVASIR_FETCH_MAX_SIZE", "100k")
    monkeypatch.setenv("KVASIR_FETCH_TOKEN", "s3cret")
    with serving(site()) as server:
        assert main(["fetch", f"{server.url}/m", str(tmp_path / "model")]) == 2
    assert "bound of 100000 bytes" in json.loads(termination.read_text())["message"]


def test_only_known_names_are_read_from_a_secret(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "AWS_REGION").write_text("eu-1\n")
    (tmp_path / "HF_TOKEN").write_text("from file")
    (tmp_path / "LD_PRELOAD").write_text("evil.so")
    found = read_secrets(tmp_path, {"HF_TOKEN": "from environment", "HF_ENDPOINT": "https://mirror", "PATH": "/bin"})
    assert found == {"AWS_REGION": "eu-1", "HF_TOKEN": "from file", "HF_ENDPOINT": "https://mirror"}


def test_a_missing_secret_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KvasirError, match="is no folder"):
        read_secrets(tmp_path / "nowhere", {})


def test_a_fetch_never_imports_torch() -> None:
    code = "import sys, kvasir_runtime.fetch.cli, kvasir_runtime.fetch.s3_source, kvasir_runtime.fetch.hub_source, \
kvasir_runtime.fetch.http_source; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


class Silent(Handler):
    """Begins to send the weights and falls silent."""

    def send_body(self, path: str, content: bytes) -> None:
        if not path.endswith(".safetensors"):
            super().send_body(path, content)
            return
        self.wfile.write(content[:1000])
        self.wfile.flush()
        self.begun.set()
        self.over.wait(60)

    begun = threading.Event()
    over = threading.Event()


@pytest.mark.slow
def test_sigterm_ends_a_transfer_that_hangs(tmp_path: Path) -> None:
    """As process 1 of a container it would otherwise be killed only after the grace period."""
    files = {f"/m/{name}": data for name, data in model_files().items()}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pause = threading.Event()
    with serving(Site(files), Silent) as server:
        argv = [sys.executable, "-m", "kvasir_runtime", "fetch", f"{server.url}/m", str(tmp_path / "model")]
        with subprocess.Popen(argv, env=environment) as process:
            assert Silent.begun.wait(60)
            while not (tmp_path / "model" / "config.json").exists():  # the small files come beside the one that hangs
                assert process.poll() is None
                pause.wait(0.02)
            process.terminate()
            assert process.wait(30) == 128 + signal.SIGTERM
        Silent.over.set()
    assert not (tmp_path / "model" / ".complete").exists()
