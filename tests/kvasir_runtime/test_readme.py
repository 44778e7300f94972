"""runtime/README.md against the code: every endpoint, flag, series and cause is there, and nothing else.

`python -m tests.kvasir_runtime.test_readme` prints the table of flags anew.
"""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

from fastapi import FastAPI
from fastapi.routing import APIRoute

from kvasir_runtime.__main__ import COMMANDS, EXIT_STATUS
from kvasir_runtime.contract.engine_args import EngineArgs, ToolCallParser, flag_name
from kvasir_runtime.contract.failures import Cause
from kvasir_runtime.engine.messages import EngineReady, EngineStats
from kvasir_runtime.models.registry import FAMILIES, Family
from kvasir_runtime.server.metrics import Metrics
from kvasir_runtime.server.operator_app import build_operator_app
from kvasir_runtime.server.tools.formats import FORMATS
from kvasir_runtime.server.user_app import build_user_app
from tests.kvasir_runtime.models.families import FAMILIES as COMPARED

README = Path(__file__).resolve().parents[2] / "runtime" / "README.md"


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    from_table = itertools.dropwhile(lambda line: not line.startswith("|"), section.splitlines())
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), from_table))
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def endpoints(app: FastAPI) -> set[tuple[str, str]]:
    return {
        (method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods or ()
    }


def test_endpoints() -> None:
    """Both ports' endpoints are in the table, /docs included."""
    service = cast("Any", SimpleNamespace(api_keys=None, admin_tokens=None, lifecycle=None, args=EngineArgs(model="m")))
    user, operator = (cast("Any", build(service))._app for build in (build_user_app, build_operator_app))
    written = {(port, method, path) for port, method, path, _ in table("Endpoints")}
    expected = {("8000", *endpoint) for endpoint in endpoints(user) | {("GET", "/docs"), ("GET", "/openapi.json")}}
    expected |= {("8001", *endpoint) for endpoint in endpoints(operator)}
    assert written == expected


def render_flags() -> list[list[str]]:
    rows = []
    for name, field in EngineArgs.model_fields.items():
        default = "required" if field.is_required() else str(field.get_default())
        rows.append([flag_name(name), "" if default in ("None", "", "[]") else default, field.description or ""])
    return rows


def test_flags() -> None:
    """Every setting with its default and its words."""
    assert [[flag, default, words] for flag, default, words in table("Flags")] == render_flags()


def test_tool_formats() -> None:
    """Every format of tool calls is told."""
    rows = [
        line
        for line in README.read_text().split("### Tools")[1].split("### ")[0].splitlines()
        if line.startswith("| `")
    ]
    assert [row.split("`")[1] for row in rows] == list(FORMATS)
    assert list(FORMATS) == list(get_args(ToolCallParser))


def test_commands() -> None:
    """Every command is told."""
    assert {row[0] for row in table("Commands")} == set(COMMANDS)


def test_metrics() -> None:
    """Every exported series with its type and labels, and no other."""
    metrics = Metrics("m", EngineArgs(model="m"))
    metrics.watch_draining(lambda: False)
    metrics.watch_sleep(lambda: 0)
    metrics.watch_adapters(4, lambda: (set(), set()))
    ready = EngineReady(100, 10, 16, 10, 1, 1, "", "float32", {})
    metrics.engine_ready(ready, EngineStats, {"total": 1.0})
    exported = {}
    for family in metrics.registry.collect():
        labels = sorted(set(family.samples[0].labels) - {"le"})
        suffix = "_total" if family.type == "counter" else ""
        exported[family.name + suffix] = (family.type, ", ".join(labels))
    assert {name: (kind, labels) for name, kind, labels, _ in table("Metrics")} == exported


def test_models() -> None:
    """Every architecture with its file, and no other; each is compared with transformers."""
    written = {architecture: path for architecture, path, _ in table("Models")}
    assert written == {name: module_file(family) for name, family in FAMILIES.items()}
    assert {f"{name}ForCausalLM" for name, _ in COMPARED.values()} == set(written)


def module_file(family: Family) -> str:
    return family.config.__module__.removeprefix("kvasir_runtime.").replace(".", "/") + ".py"


def test_a_requests_life() -> None:
    """Eight steps, each names files or folders of its own, and all of them are there."""
    section = README.read_text().split("\n## A request's life in 8 steps\n")[1].split("\n## ")[0]
    steps = re.findall(r"^(\d)\. \*\*(.+?)\*\*((?:.|\n(?!\d\.|\n))*)", section, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, 9))
    for _, name, text in steps:
        paths = re.findall(r"`([\w/]+(?:/|\.py))`", text)
        assert paths or name == "Update", f"{name} names no file"
        for path in paths:
            assert (README.parent / "kvasir_runtime" / path).exists(), f"{name}: {path} does not exist"


def test_causes() -> None:
    """Every cause with its exit status."""
    written = {cause: int(status) for cause, status, _, _ in table("How a process ends")}
    assert written == {cause.value: EXIT_STATUS.get(cause, 1) for cause in Cause}


def test_no_long_lines() -> None:
    """Prose is wrapped; only tables may be wide."""
    for line in README.read_text().splitlines():
        assert len(line) <= 160 or re.match(r"\||    ", line), line


if __name__ == "__main__":
    for row in render_flags():
        print(f"| `{row[0]}` | {row[1]} | {row[2]} |")
