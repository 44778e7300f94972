"""Every start that cannot work: one line with a remedy, the exit status, the reason for the kubelet."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.kvasir_runtime.server.harness import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def assert_refused(server, cause: str, message: str, *, status: int = 1) -> None:
    assert server.process.wait(60) == status, server.log
    assert server.failure["cause"] == cause
    assert message in server.failure["message"]
    assert server.failure["remedy"]
    last = json.loads(server.log.splitlines()[-1])
    assert (last["level"], last["cause"]) == ("error", cause)
    assert "Remedy: " in last["message"]
    assert "Traceback" not in server.log


def test_no_model_folder(start_server, tmp_path):
    """ModelNotFound names the folder."""
    missing = tmp_path / "missing"
    assert_refused(start_server(model=missing), "ModelNotFound", f"model folder {missing} does not exist")


def test_empty_model_folder(start_server, tmp_path):
    """An empty folder is a failed mount or download."""
    (tmp_path / "empty").mkdir()
    assert_refused(start_server(model=tmp_path / "empty"), "ModelNotFound", "is empty")


def test_broken_config(start_server, model):
    """ModelInvalid says where the JSON breaks."""
    (model / "config.json").write_text('{"architectures": [')
    assert_refused(start_server(model=model), "ModelInvalid", "config.json is not valid JSON: Expecting value: line 1")


def test_no_tokenizer(start_server, model):
    """ModelInvalid says which file is missing and how to make it."""
    (model / "tokenizer.json").unlink()
    assert_refused(start_server(model=model), "ModelInvalid", "has no tokenizer.json")


def test_broken_tokenizer(start_server, model):
    """A tokenizer that the library cannot read ends the start, though the engine loads."""
    (model / "tokenizer.json").write_text("{}")
    assert_refused(start_server(model=model), "ModelInvalid", "tokenizer.json is no tokenizer")


def test_pickled_weights(start_server, model):
    """Pickles are never loaded; the message says so."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert_refused(start_server(model=model), "ModelNotFound", "pytorch_model.bin is a pickle, which is never loaded")


def test_broken_chat_template(start_server, tmp_path):
    """A template with a syntax error is refused with its line."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for %}")
    server = start_server("--chat-template", str(template))
    assert_refused(server, "InvalidArguments", "the chat template is invalid at line 1", status=2)


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
def test_port_taken(start_server, flag):
    """PortInUse names the port, the flag and the process that holds it; nothing was loaded."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        server = start_server(flag, str(port))
        assert_refused(server, "PortInUse", f"port {port} ({flag}) is in use by process ")
        assert "half of nothing" not in server.log


def test_bad_flag(start_server):
    """InvalidArguments names flag, bound and value; exit status 2."""
    server = start_server("--max-num-seqs", "0")
    message = "--max-num-seqs must be greater than or equal to 1, got '0'"
    assert_refused(server, "InvalidArguments", message, status=2)


def test_bad_variable(start_server):
    """A bad value from the environment is named by its variable."""
    server = start_server(env={"KVASIR_BLOCK_SIZE": "17"})
    assert_refused(server, "InvalidArguments", "KVASIR_BLOCK_SIZE must be 8, 16, 32, 64 or 128, got 17", status=2)


def test_missing_key_file(start_server, tmp_path):
    """A key file that is not there must not mean an open door; nothing is left of the start."""
    server = start_server("--api-key-file", str(tmp_path / "none"), env={"TMPDIR": str(tmp_path)})
    assert_refused(server, "InvalidArguments", "none (--api-key-file)", status=2)
    assert not list(tmp_path.glob("kvasir-*"))


def test_not_enough_memory(start_server):
    """What the engine says of its end reaches the kubelet as it was said."""
    server = start_server(env={"FAKE_CORE_START": "oom"})
    assert_refused(server, "OutOfMemoryWeights", "weights need 9Gi, the limit is 1Gi")


def test_engine_exits_while_loading(start_server):
    """A silent end while loading is told as such."""
    server = start_server(env={"FAKE_CORE_START": "exit"})
    assert_refused(server, "EngineDied", "exited with status 3 while it loaded the model")


def test_engine_raises_while_loading(start_server):
    """An unexpected exception keeps its words, and its traceback in the log and the detail."""
    server = start_server(env={"FAKE_CORE_START": "raise"})
    assert server.process.wait(60) == 1
    assert server.failure["cause"] == "InternalError"
    assert "the engine could not start: RuntimeError: told to raise" in server.failure["message"]
    assert "fake_core.py" in server.failure["detail"]["traceback"]


@pytest.mark.slow
def test_unsupported_architecture(start_server, model):
    """ModelUnsupported names the architecture and comes from the real engine."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    assert_refused(start_server(model=model, fake=False), "ModelUnsupported", "MambaForCausalLM")


@pytest.mark.slow
def test_kv_cache_too_small(start_server):
    """OutOfMemoryKVCache comes from the real engine with the number that would do."""
    server = start_server("--kv-cache-memory", "64Ki", fake=False)
    assert_refused(server, "OutOfMemoryKVCache", "64Ki")
