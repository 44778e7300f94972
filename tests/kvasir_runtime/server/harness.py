"""Real `kvasir-runtime serve` processes for tests, with a fake engine core or the tiny model."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "tests" / "models" / "tiny-llama"
ADMIN_TOKEN = "operator-token"


def wait_until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    """Look every 20 ms until `condition` holds; fails the test after `timeout_s`."""
    pause, deadline = threading.Event(), time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        pause.wait(0.02)


def call(method: str, url: str, **options: Any) -> httpx.Response:
    """One request. Without `verify=False` each would read the system's certificates first, for 50 ms."""
    return httpx.request(method, url, verify=False, **options)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def is_running(pid: int) -> bool:
    """Whether `pid` is a process that has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_ended(pid: int) -> bool:
    return not is_running(pid)


@dataclass
class Server:
    """One serving process. Ports are its own."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log_file: Path
    termination_log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def failure(self) -> dict[str, Any]:
        """What it left in the termination message."""
        return dict(json.loads(self.termination_log.read_text()))

    @property
    def engine_pid(self) -> int:
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def probe(self, path: str) -> httpx.Response:
        return call("GET", self.admin_url + path, timeout=20)

    def admin(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        return call(method, self.admin_url + path, headers=headers, timeout=20, **kwargs)

    def complete(self, **body: Any) -> httpx.Response:
        return call("POST", f"{self.url}/v1/completions", json={"prompt": "def foo(", **body}, timeout=60)

    def wait_ready(self) -> "Server":
        wait_until(self._is_ready)
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.probe("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """End it cleanly and return its exit status; kills it when that takes over 40 s."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


StartServer = Callable[..., Server]


def launch(
    folder: Path, *flags: str, model: Path = MODEL, fake: bool = True, env: dict[str, str] | None = None
) -> Server:
    """Start a server; `fake` takes the core that needs no model."""
    port, admin_port = free_ports(2)
    token_file = folder / "admin-token"
    token_file.write_text(ADMIN_TOKEN)
    log_file, termination_log = folder / f"{port}.log", folder / f"{port}.termination"
    core = {"KVASIR_ENGINE_CORE": "fake_core:FakeCore"} if fake else {}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KVASIR_")},
        "PYTHONPATH": str(ROOT / "tests" / "kvasir_runtime" / "engine"),
        "KVASIR_TERMINATION_LOG": str(termination_log),
        "OMP_NUM_THREADS": "1",
        **core,
        **(env or {}),
    }
    command = [sys.executable, "-m", "kvasir_runtime", "serve", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--admin-port", str(admin_port), "--admin-token-file", str(token_file), *flags]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    return Server(process, port, admin_port, log_file, termination_log)
