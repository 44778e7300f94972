"""A name that flips between versions under load, with the committed model: no failure, no answer of two versions."""

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvasir_runtime.contract.admin_api import AdapterReports
from tests.kvasir_runtime.lora.adapters import LEGAL, PIRATE, TINY_LLAMA, digest_of
from tests.kvasir_runtime.server.harness import Server, call, launch, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FLAGS = ("--served-model-name", "tiny", "--num-threads", "1", "--kv-cache-memory", "32Mi", "--dtype", "float32")
QUESTIONS = ("Who are you?", "What does math.sqrt do?", "Tell me about list.append.", "What is a tuple?")
CLIENTS, SWAPS = 6, 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for source in (PIRATE, LEGAL):
        shutil.copytree(source, tmp_path / "adapters" / source.name)
    lora = ("--enable-lora", "--max-loras", "2", "--max-cpu-loras", "2", "--lora-roots", str(tmp_path / "adapters"))
    server = launch(tmp_path, *FLAGS, *lora, fake=False)
    wait_until(server._is_ready, timeout_s=90)
    yield server
    server.stop()


def adapter(server: Server, name: str, source: Path) -> dict[str, Any]:
    return {"name": name, "uri": str(server.log_file.parent / "adapters" / source.name)}


def want(server: Server, *adapters: dict[str, Any]) -> None:
    server.admin("PUT", "/admin/adapters", json={"adapters": list(adapters)}).raise_for_status()
    wait_until(lambda: all(report.state == "loaded" for report in reports(server).adapters))


def reports(server: Server) -> AdapterReports:
    return AdapterReports.model_validate(server.admin("GET", "/admin/adapters").json())


def ask(server: Server, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
    reply = call("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_a_name_that_flips_under_load(server: Server) -> None:
    """Six clients ask one name while it is replaced at random; three versions compete for two places in memory."""
    want(server, adapter(server, "pirate", PIRATE), adapter(server, "legal", LEGAL), adapter(server, "x", PIRATE))
    allowed = {question: {ask(server, name, question) for name in ("pirate", "legal")} for question in QUESTIONS}
    base = {question: ask(server, "tiny", question) for question in QUESTIONS}
    assert all(len(answers) == 2 for answers in allowed.values())
    over, failures, asked = threading.Event(), list[BaseException](), list[str]()

    def client(seed: int) -> None:
        choose = random.Random(seed)
        try:
            while not over.is_set():
                question, model = choose.choice(QUESTIONS), choose.choice(["x", "x", "x", "tiny"])
                answer = ask(server, model, question)
                assert answer in allowed[question] if model == "x" else answer == base[question]
                asked.append(answer)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    choose = random.Random(0)
    for _ in range(SWAPS):
        source = choose.choice([PIRATE, LEGAL])
        others = choose.choice([(), (adapter(server, "legal", LEGAL),)])
        want(server, adapter(server, "x", source), *others)
        serving = {report.name: report.digest for report in reports(server).adapters}["x"]
        assert serving == digest_of(TINY_LLAMA, source)
    wait_until(lambda: len(asked) > SWAPS or bool(failures), timeout_s=200)
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
    want(server)
    wait_until(lambda: not reports(server).versions)
