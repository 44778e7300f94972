"""What a model folder says before any weight is read: torch-free, so that a bad folder is refused in milliseconds."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvasir_runtime.contract.failures import Cause, KvasirError


@dataclass(frozen=True)
class GenerationDefaults:
    """`generation_config.json`: what a request gets that does not say otherwise. None: the API's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A checked model folder. `eos_token_ids` end a sequence unless a request says `ignore_eos`."""

    path: Path
    config: dict[str, Any]
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    eos_token_ids: tuple[int, ...] = ()


def read_model_folder(folder: str) -> ModelFiles:
    """Check and read a folder in Hugging Face layout; raises KvasirError with what is missing and what to do."""
    path = Path(folder)
    _check_is_folder(path)
    config = read_json(path / "config.json")
    _check_tokenizer(path)
    _check_weights(path)
    generation = read_json(path / "generation_config.json") if (path / "generation_config.json").exists() else {}
    return ModelFiles(path, config, _generation_defaults(path, generation), _eos_token_ids(config, generation))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises KvasirError(ModelInvalid) that says where it is broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from None
    except ValueError as error:
        raise _invalid(path, f"is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _invalid(path, f"must hold a JSON object, holds {type(data).__name__}")
    return data


def _check_is_folder(path: Path) -> None:
    remedy = "point --model at a folder in Hugging Face layout; in a pod, check the volume and its mount path"
    if not path.exists():
        raise KvasirError(Cause.MODEL_NOT_FOUND, f"model folder {path} does not exist", remedy)
    if not path.is_dir():
        raise KvasirError(Cause.MODEL_NOT_FOUND, f"model {path} is not a folder", remedy)
    if not (path / "config.json").exists():
        state = "has no config.json" if any(path.iterdir()) else "is empty"
        raise KvasirError(Cause.MODEL_NOT_FOUND, f"model folder {path} {state}", remedy)


def _check_tokenizer(path: Path) -> None:
    if not (path / "tokenizer.json").exists():
        remedy = "add tokenizer.json; with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        raise KvasirError(Cause.MODEL_INVALID, f"model folder {path} has no tokenizer.json", remedy)


def _check_weights(path: Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    found = f"; {pickled[0]} is a pickle, which is never loaded" if pickled else ""
    raise KvasirError(
        Cause.MODEL_NOT_FOUND,
        f"model folder {path} has no *.safetensors weights{found}",
        "convert the weights to safetensors" if pickled else "check that the download finished",
    )


def _generation_defaults(path: Path, generation: dict[str, Any]) -> GenerationDefaults:
    values = {name: generation.get(name) for name in GenerationDefaults.__dataclass_fields__}
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _invalid(path / "generation_config.json", f"{name} must be a number, got {value!r}")
    return GenerationDefaults(**values)


def _eos_token_ids(config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def _invalid(path: Path, problem: str) -> KvasirError:
    return KvasirError(
        Cause.MODEL_INVALID, f"{path} {problem}", "fix the file or download the model again", path=str(path)
    )
