"""Real `kvasir-runtime serve` processes as fixtures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kvasir_runtime.server.harness import Server, StartServer, launch


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers for one test; all are gone when it ends."""
    servers: list[Server] = []

    def start(*flags: str, **kwargs: Any) -> Server:
        servers.append(launch(tmp_path, *flags, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the fake core for a whole module of tests that leave it as it was."""
    server = launch(tmp_path_factory.mktemp("server"), "--served-model-name", "tiny,other-name").wait_ready()
    yield server
    server.stop()
