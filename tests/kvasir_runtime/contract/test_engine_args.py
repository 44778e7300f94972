import pytest
from pydantic import ValidationError

from kvasir_runtime.contract.engine_args import EngineArgs, env_name, flag_name, from_environment


def test_only_what_was_set_is_rendered() -> None:
    args = EngineArgs.model_validate(
        {
            "model": "/models/m",
            "served_model_name": ["a", "b"],
            "kv_cache_memory": "512Mi",
            "enable_prefix_caching": False,
        }
    )
    assert args.to_argv() == [
        "--model",
        "/models/m",
        "--served-model-name",
        "a,b",
        "--kv-cache-memory",
        "536870912",
        "--no-enable-prefix-caching",
    ]


def test_what_is_rendered_can_be_read_back() -> None:
    """A duration is rendered as plain seconds, without a unit."""
    args = EngineArgs.model_validate({"model": "/models/m", "drain_timeout": "5m"})
    [flag, value] = args.to_argv()[2:]
    assert (flag, value) == ("--drain-timeout", "300")
    assert EngineArgs.model_validate({"model": "/models/m", "drain_timeout": value}) == args


def test_names_of_flags_and_variables_follow_from_the_field() -> None:
    assert flag_name("max_num_seqs") == "--max-num-seqs"
    assert env_name("max_num_seqs") == "KVASIR_MAX_NUM_SEQS"


def test_the_environment_fills_fields() -> None:
    found = from_environment({"KVASIR_MAX_NUM_SEQS": "8", "KVASIR_DRAIN_TIMEOUT": "1m30s", "PATH": "/bin"})
    args = EngineArgs.model_validate({"model": "m", **found})
    assert (args.max_num_seqs, args.drain_timeout) == (8, 90.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("gpu_memory_utilization", 1.5),
        ("block_size", 12),
        ("kv_cache_memory", "5MB"),
        ("dtype", "f16"),
    ],
)
def test_a_bad_value_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        EngineArgs.model_validate({"model": "m", field: value})


def test_the_two_ports_differ() -> None:
    with pytest.raises(ValidationError, match="port and admin_port must differ, both are 9000"):
        EngineArgs(model="m", port=9000, admin_port=9000)
