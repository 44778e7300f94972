"""Messages survive the way between the processes unchanged."""

from pathlib import Path

import pytest

from kvasir_runtime.config import CacheConfig, EngineConfig
from kvasir_runtime.engine.engine_process import EngineSpec
from kvasir_runtime.engine.launcher import explain_exit
from kvasir_runtime.engine.messages import (
    AbortRequests,
    AbortSequences,
    EngineFailed,
    EngineOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    Heartbeat,
    StartupProgress,
    StepOutputs,
    TokenLogprobs,
)
from kvasir_runtime.engine.transport import EngineLink, FrontEndLink, decode, encode, make_socket_folder
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.host import HostMemory

SAMPLING = SamplingParams(n=2, max_tokens=5, logit_bias={3: -1.5}, stop=("a", "b"), stop_token_ids=(7,), seed=-1)
SCORED = TokenLogprobs(5, -0.25, 0, [(5, -0.25), (6, -2.0)])
MESSAGES = [
    EngineRequest("r1", [1, 2, 3], SAMPLING, 12.5, priority=-3, cache_salt="s", adapter="a", adapter_digest="d"),
    AbortRequests(["r1", "r2"]),
    AbortSequences([("r1", 0), ("r1", 2)]),
    StepOutputs(
        [EngineOutput("r1", [5], 1, FinishReason.STOP, 5, [SCORED], [None, SCORED], 16, "")],
        EngineStats(running=1, cache_value=0.5),
        {"r1": 13.0},
    ),
    StartupProgress("weights", 0.5, "shard 1 of 2"),
    EngineReady(2048, 3072, 16, 100, 10**10, 1000, "digest", "bfloat16", {"weights": 1.5}),
    EngineFailed('{"cause": "EngineDied"}'),
    Heartbeat(0.0, 1.25),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message):
    """Every message is rebuilt equal, types included."""
    assert decode(encode(message)) == message


@pytest.mark.parametrize("frame", [b"", b"\xff", b"\x63\x80"])
def test_unknown_frames(frame):
    """Bytes of no message are refused, not guessed at."""
    with pytest.raises(ValueError, match="unknown message tag"):
        decode(frame)


def test_spec_round_trip():
    """The settings of a new engine process arrive as they were, paths included."""
    config = EngineConfig(Path("/models/x"), cache=CacheConfig(memory=1 << 30), num_threads=2)
    spec = EngineSpec(config, Path("/run/kvasir"), "debug", "json")
    assert EngineSpec.from_bytes(spec.to_bytes()) == spec


def test_socket_folder_is_private(tmp_path, monkeypatch):
    """Only this user may enter the folder, and it leaves nothing behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = make_socket_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    link = FrontEndLink(folder)
    assert {file.name for file in folder.iterdir()} == {"requests", "outputs"}
    link.close()
    assert not list(tmp_path.iterdir())


def test_socket_folder_with_a_long_name(tmp_path, monkeypatch):
    """Where the temporary folder's path is too long for a socket, another place is taken."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = make_socket_folder()
    assert folder.parent == Path("/dev/shm")
    assert not list(long.iterdir())
    folder.rmdir()


def test_first_words_are_not_lost(tmp_path):
    """What an engine says before anybody listens is read later, also when the engine has ended meanwhile."""
    front_end = FrontEndLink(tmp_path)
    engine = EngineLink(tmp_path)
    engine.send(EngineFailed("early"))
    engine.close()
    assert decode(front_end.outputs.recv()) == EngineFailed("early")
    front_end.close()


def test_pipes_work_without_their_names(tmp_path):
    """Once connected, both directions go on when the addresses are gone."""
    front_end = FrontEndLink(tmp_path)
    engine = EngineLink(tmp_path)
    front_end.send(AbortRequests(["first"]))
    assert engine.receive(5.0) == [AbortRequests(["first"])]
    front_end.forget_addresses()
    front_end.send(AbortRequests(["second"]))
    assert engine.receive(5.0) == [AbortRequests(["second"])]
    engine.send(Heartbeat(0.0, 1.0))
    assert decode(front_end.outputs.recv()) == Heartbeat(0.0, 1.0)
    engine.close()
    front_end.close()


@pytest.mark.parametrize(
    ("status", "loading", "killed_for_memory", "cause", "message"),
    [
        (
            -9,
            True,
            True,
            "OutOfMemoryWeights",
            "the kernel killed the engine while it loaded the model: it needed more memory than its limit of 96Mi",
        ),
        (
            -9,
            False,
            True,
            "OutOfMemoryKVCache",
            "the kernel killed the engine while it served: it needed more memory than its limit of 96Mi",
        ),
        (-9, True, False, "EngineDied", "the engine process was killed by SIGKILL while it loaded the model"),
        (-11, False, False, "EngineDied", "the engine process was killed by SIGSEGV while it served"),
        (-64, False, False, "EngineDied", "the engine process was killed by SIGRTMAX while it served"),
        (-63, False, False, "EngineDied", "the engine process was killed by signal 63 while it served"),
        (3, False, False, "EngineDied", "the engine process exited with status 3 while it served"),
    ],
)
def test_explained_exits(monkeypatch, status, loading, killed_for_memory, cause, message):
    """Memory is blamed only where the kernel says so."""
    monkeypatch.setattr("kvasir_runtime.engine.launcher.memory_limit", lambda: HostMemory(96 * 2**20, limited=True))
    report = explain_exit(status, loading=loading, killed_for_memory=killed_for_memory)
    assert (report.cause, report.message) == (cause, message)
