"""Engine settings from the command line and the environment: flags win over variables, variables over defaults."""

import argparse
import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from kvasir_runtime.config import AdapterConfig, CacheConfig, DiskConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.engine_args import (
    ENV_PREFIX,
    EngineArgs,
    env_name,
    flag_name,
    from_environment,
    split_disk_tier,
)
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.validation import explain

GROUPS: Final = {
    "model": "what is served",
    "max_num_seqs": "batching",
    "block_size": "KV cache",
    "device": "device",
    "enable_lora": "adapters",
    "host": "front end",
}
"""The first field of each group of flags in `--help`."""

NOT_YET_SUPPORTED: Final[dict[str, object]] = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
}
"""Settings of the contract that only work with the given value as yet; any other is refused, none ignored."""

_METAVARS: Final = {
    "model": "DIR",
    "kv_cache_memory": "BYTES",
    "kv_offload_host": "BYTES",
    "kv_offload_disk": "DIR:SIZE",
    "gpu_memory_utilization": "SHARE",
    "drain_timeout": "DURATION",
    "queue_timeout": "DURATION",
    "api_key": "KEYS",
    "chat_template": "FILE",
    "lora_cache": "DIR",
    "block_size": "{8,16,32,64,128}",
}
_SERVICE_LINK: Final = re.compile(r"(tcp|udp|sctp)://")


class ArgumentParser(argparse.ArgumentParser):
    """Reports a bad command line as a `KvasirError`, so that a pod shows it like every other failure."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise KvasirError(Cause.INVALID_ARGUMENTS, message + self._suggestion(message), f"see {self.prog} --help")

    def _suggestion(self, message: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        close = [match for flag in unknown for match in difflib.get_close_matches(flag, known, n=1)]
        return f" (did you mean {', '.join(close)}?)" if close else ""


def add_engine_arguments(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add a flag for every field of `EngineArgs`; values stay unparsed strings until `engine_args` checks them.

    `only` names the fields that a command offers, ungrouped, when it does not offer all.
    """
    group: argparse._ArgumentGroup | argparse.ArgumentParser = parser
    for name, field in EngineArgs.model_fields.items():
        if only is not None and name not in only:
            continue
        if only is None and name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field), "dest": name}
        if field.annotation is bool:
            group.add_argument(flag_name(name), action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag_name(name), metavar=_metavar(name, field), **options)


def engine_args(namespace: argparse.Namespace, environ: Mapping[str, str]) -> EngineArgs:
    """Merge flags, environment and defaults; raises KvasirError(InvalidArguments) that names flag, bound and value."""
    flags = {name: value for name, value in vars(namespace).items() if name in EngineArgs.model_fields}
    variables = {name: value for name, value in from_environment(environ).items() if _is_meant_for_us(value)}
    try:
        args = EngineArgs.model_validate({**variables, **flags})
    except ValidationError as error:
        lines = [_describe(detail, flags) for detail in error.errors(include_url=False)]
        raise KvasirError(
            Cause.INVALID_ARGUMENTS, "; ".join(lines), "see kvasir-runtime serve --help for what each setting takes"
        ) from None
    _refuse_unsupported(args)
    return args


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Warnings about KVASIR_… variables that nothing reads and that look like one of ours."""
    known = {env_name(name) for name in EngineArgs.model_fields}
    warnings = []
    for name in sorted(set(environ) - known):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85) if name.startswith(ENV_PREFIX) else []
        if close:
            warnings.append(f"environment variable {name} is not read; did you mean {close[0]}?")
    return warnings


def engine_config(args: EngineArgs) -> EngineConfig:
    """What the engine process needs to know of the settings."""
    return EngineConfig(
        model=Path(args.model),
        dtype=args.dtype,
        quantization=args.quantization,
        device=args.device,
        max_model_len=args.max_model_len,
        tensor_parallel_size=args.tensor_parallel_size,
        num_threads=args.num_threads,
        seed=args.seed,
        cache=CacheConfig(
            block_size=args.block_size,
            dtype=args.kv_cache_dtype,
            memory=args.kv_cache_memory,
            utilization=args.gpu_memory_utilization,
            prefix_caching=args.enable_prefix_caching,
            eviction_policy=args.prefix_eviction_policy,
            host_memory=args.kv_offload_host,
            disk=_disk_config(args),
        ),
        scheduler=SchedulerConfig(
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            policy=args.scheduling_policy,
            prefer_prefill=args.prefer_prefill,
        ),
        adapters=AdapterConfig(args.max_loras, args.max_cpu_loras, args.max_lora_rank) if args.enable_lora else None,
    )


def _disk_config(args: EngineArgs) -> DiskConfig | None:
    if args.kv_offload_disk is None:
        return None
    folder, size = split_disk_tier(args.kv_offload_disk)
    return DiskConfig(Path(folder), size, args.kv_offload_salted)


def _is_meant_for_us(value: str) -> bool:
    # A Service named `kvasir` makes the kubelet set KVASIR_PORT=tcp://10.0.0.1:8000 in every pod of its namespace.
    return bool(value) and not _SERVICE_LINK.match(value)


def _describe(detail: Any, flags: Mapping[str, object]) -> str:
    text = explain(detail["type"], detail["msg"], detail["input"])
    if not detail["loc"]:
        return text
    name = str(detail["loc"][0])
    origin = flag_name(name) if name in flags or detail["type"] == "missing" else env_name(name)
    return f"{origin} {text}" if detail["type"] != "value_error" else f"{origin}: {text}"


def _refuse_unsupported(args: EngineArgs) -> None:
    for name, supported in NOT_YET_SUPPORTED.items():
        value = getattr(args, name)
        if value != supported:
            msg = f"{flag_name(name)} is not supported by this version beyond its default {supported!r}, got {value!r}"
            raise KvasirError(Cause.INVALID_ARGUMENTS, msg, f"leave out {flag_name(name)}")


def _help(field: FieldInfo) -> str:
    default = field.get_default()
    shown = "" if default in (None, "", []) or field.is_required() else f" (default: {_show_default(default)})"
    return f"{field.description}{shown}".replace("%", "%%")


def _show_default(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(map(str, get_args(field.annotation))) + "}"
    if name in _METAVARS:
        return _METAVARS[name]
    if field.annotation == list[str]:
        return "NAMES"
    return "N" if field.annotation in (int, int | None) else name.rsplit("_", 1)[-1].upper()
