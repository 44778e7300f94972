"""The command line: flags over environment over defaults, and errors that name flag, bound and value."""

import argparse
import subprocess
import sys

import pytest

from kvasir_runtime import cli
from kvasir_runtime.__main__ import COMMANDS, main
from kvasir_runtime.contract.engine_args import EngineArgs, env_name, flag_name
from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError


def parse(*argv: str, **environ: str) -> EngineArgs:
    parser = cli.ArgumentParser(prog="test")
    cli.add_engine_arguments(parser)
    return cli.engine_args(parser.parse_args(argv), environ)


def refusal(*argv: str, **environ: str) -> FailureReport:
    with pytest.raises(KvasirError) as caught:
        parse(*argv, **environ)
    assert caught.value.report.cause is Cause.INVALID_ARGUMENTS
    return caught.value.report


def test_flags_win_over_environment_over_defaults():
    """Each setting comes from the nearest place that names it."""
    args = parse("--model", "m", "--max-num-seqs", "7", KVASIR_MAX_NUM_SEQS="5", KVASIR_BLOCK_SIZE="32")
    assert (args.max_num_seqs, args.block_size, args.port) == (7, 32, 8000)


def test_to_argv_reads_back_equal():
    """What the operator renders is what the runtime reads."""
    args = EngineArgs(
        model="m",
        served_model_name=["a", "b"],
        kv_cache_memory="512Mi",
        enable_prefix_caching=False,
        drain_timeout="90s",
        gpu_memory_utilization=0.5,
    )
    assert parse(*args.to_argv()) == args


def test_flags_and_variables_for_every_field():
    """No field lacks its flag, and every variable is read."""
    parser = argparse.ArgumentParser()
    cli.add_engine_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert {flag_name(name) for name in EngineArgs.model_fields} <= flags
    assert parse(KVASIR_MODEL="m", KVASIR_ENABLE_PREFIX_CACHING="false").enable_prefix_caching is False


def test_groups_and_refusals_name_fields():
    """The tables in cli name fields that exist, with values that the contract allows."""
    assert cli.GROUPS.keys() | cli.NOT_YET_SUPPORTED.keys() <= EngineArgs.model_fields.keys()
    for name, value in cli.NOT_YET_SUPPORTED.items():
        assert EngineArgs.model_fields[name].get_default() == value


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        ([], {}, "--model is required"),
        (["--model", "m", "--max-num-seqs", "0"], {}, "--max-num-seqs must be greater than or equal to 1, got '0'"),
        (["--model", "m", "--max-num-seqs", "many"], {}, "--max-num-seqs must be a valid integer"),
        (
            ["--model", "m", "--dtype", "int3"],
            {},
            "'float16' or 'float32', got 'int3'",
        ),
        (["--model", "m", "--kv-cache-memory", "5Q"], {}, "--kv-cache-memory: '5Q' is no byte count"),
        (["--model", "m", "--drain-timeout", "soon"], {}, "--drain-timeout: 'soon' is no duration"),
        (["--model", "m"], {"KVASIR_PORT": "70000"}, "KVASIR_PORT must be less than or equal to 65535, got '70000'"),
        (["--model", "m", "--port", "8001"], {}, "port and admin_port must differ, both are 8001"),
        (
            ["--model", "m", "--tensor-parallel-size", "2"],
            {},
            "--tensor-parallel-size is not supported",
        ),
        (
            ["--model", "m", "--max-num-seq", "2"],
            {},
            "--max-num-seq 2 (did you mean --max-num-seqs?)",
        ),
        (["--model"], {}, "argument --model: expected one argument"),
    ],
)
def test_refusals(argv, environ, message):
    """Each names where the value came from, the bound and the value."""
    assert message in refusal(*argv, **environ).message


def test_several_errors_are_told_at_once():
    """Nobody should have to start three times to hear three errors."""
    message = refusal("--max-num-seqs", "0", "--block-size", "5").message
    assert all(flag in message for flag in ("--model", "--max-num-seqs", "--block-size"))


def test_service_links_are_not_settings():
    """A Service named kvasir puts KVASIR_PORT=tcp://… into every pod beside it."""
    args = parse(
        "--model", "m", KVASIR_PORT="tcp://10.0.0.1:8000", KVASIR_ADMIN_PORT="tcp://10.0.0.2:80", KVASIR_SEED=""
    )
    assert (args.port, args.admin_port, args.seed) == (8000, 8001, 0)


def test_misspelt_variables():
    """A variable that is almost one of ours is probably meant to be."""
    environ = {"KVASIR_MAX_NUM_SEQ": "5", "KVASIR_TERMINATION_LOG": "/x", "KVASIR_SERVICE_HOST": "1.2.3.4", "HOME": "/"}
    warnings = cli.misspelt_variables(environ)
    assert warnings == [
        f"environment variable KVASIR_MAX_NUM_SEQ is not read; did you mean {env_name('max_num_seqs')}?"
    ]


def test_engine_config_takes_over_what_the_engine_needs():
    """The engine's own settings arrive under the engine's names."""
    config = cli.engine_config(
        parse("--model", "/m", "--kv-cache-memory", "1Gi", "--num-threads", "3", "--block-size", "32")
    )
    assert (str(config.model), config.cache.memory, config.num_threads, config.cache.block_size) == ("/m", 2**30, 3, 32)
    assert not config.scheduler.prefer_prefill
    assert cli.engine_config(parse("--model", "/m", "--prefer-prefill")).scheduler.prefer_prefill


def test_overview_is_instant():
    """--help imports nothing heavy: no pydantic, no web stack, no torch."""
    code = (
        "import sys; sys.argv = ['kvasir-runtime', '--help']\n"
        "from kvasir_runtime.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'pydantic', 'torch', 'fastapi', 'zmq', 'rich'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in COMMANDS)
    assert out.splitlines()[-1] == "[]"


def test_serve_help_names_every_flag(capsys):
    """The help shows flags with defaults and where variables come in."""
    with pytest.raises(SystemExit) as left:
        main(["serve", "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert all(flag_name(name) in out for name in EngineArgs.model_fields)
    assert "KVASIR_MAX_NUM_SEQS" in out
    assert "(default: 2048)" in out


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["serve", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["inspect", "--model", "/none"], 1, "model folder /none does not exist"),
        (["inspect", "--model", "/none", "--memory-limit", "much"], 2, "--memory-limit: 'much' is no byte count"),
        (["chat"], 2, "either --model DIR or --url URL is needed"),
        (["chat", "--url", "localhost:1"], 1, "cannot talk to localhost:1"),
    ],
)
def test_failures_have_a_line_a_remedy_and_a_status(argv, status, message, capsys, caplog, monkeypatch):
    """What went wrong is said once; only what runs as the pod writes the termination message."""
    monkeypatch.delenv("KVASIR_TERMINATION_LOG", raising=False)
    monkeypatch.setattr("logging.Logger.hasHandlers", lambda _: False)
    assert main(argv) == status
    err = capsys.readouterr().err
    assert message in err
    assert "remedy: " in err


def test_termination_message_only_for_the_pods_own_commands(tmp_path, monkeypatch):
    """`kubectl exec … inspect` must not overwrite why the server ended."""
    log = tmp_path / "termination"
    monkeypatch.setenv("KVASIR_TERMINATION_LOG", str(log))
    assert main(["inspect", "--model", "/none"]) == 1
    assert not log.exists()
    assert main(["serve", "--nonsense"]) == 2
    report = FailureReport.from_json(log.read_text())
    assert report is not None
    assert report.cause is Cause.INVALID_ARGUMENTS


def test_version(capsys):
    """--version prints the distribution's version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # What runs before the engine is started must be light, and nothing of the front end needs torch.
        ("kvasir_runtime.server.serve", {"fastapi", "uvicorn", "tokenizers", "torch", "prometheus_client", "jinja2"}),
        ("kvasir_runtime.server.runner", {"torch", "numpy", "transformers", "rich"}),
        ("kvasir_runtime.engine.engine_process", {"fastapi", "pydantic", "asyncio", "torch"}),
    ],
)
def test_what_each_process_leaves_out(module, absent):
    """A start is quick because each part imports only what it needs, when it needs it."""
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []
