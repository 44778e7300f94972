"""The router's README against the code; `python -m tests.kvasir_router.test_readme` writes its tables anew."""

import re
from pathlib import Path

from prometheus_client.core import Metric

from kvasir_router.router import Router
from kvasir_router.settings import RouterSettings
from kvasir_runtime.contract.engine_args import flag_name
from kvasir_runtime.contract.router_api import RouterConfig, RouterEndpoint

README = Path(__file__).resolve().parents[2] / "runtime" / "kvasir_router" / "README.md"


def render_flags() -> str:
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for name, field in RouterSettings.model_fields.items():
        default = "" if field.get_default() in (None, []) else f"`{field.get_default()}`"
        lines.append(f"| `{flag_name(name)}` | {default} | {field.description} |")
    return "\n".join(lines)


def render_metrics() -> str:
    router = Router(RouterSettings())
    router.apply(RouterConfig(endpoints=[RouterEndpoint(name="a", address="a:1")]))
    found = list(router.metrics.registry.collect())
    return "\n".join(["| series | type | labels | what it says |", "|---|---|---|---|", *map(metric_row, found)])


def metric_row(metric: Metric) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    labels = LABELS.get(name, "`endpoint`" if "_endpoint_" in name else "-")
    return f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |"


LABELS = {
    "kvasir_router_requests_total": "`code`",
    "kvasir_router_choices_total": "`reason`",
    "kvasir_router_retries_total": "`cause`",
}
"""Of series that have no sample before something has happened."""

TABLES = {"flags": render_flags, "metrics": render_metrics}


def rendered() -> str:
    text = README.read_text(encoding="utf-8")
    for name, render in TABLES.items():
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        table = f"<!-- {name} -->\n{render()}\n<!-- /{name} -->"
        text = re.sub(pattern, table.replace("\\", r"\\"), text, flags=re.DOTALL)
    return text


def test_the_tables_say_what_the_code_does():
    assert rendered() == README.read_text(encoding="utf-8")


def test_every_module_that_it_names_exists():
    named = set(re.findall(r"`(\w+\.py)`", README.read_text(encoding="utf-8")))
    assert named <= {path.name for path in README.parent.glob("*.py")}


if __name__ == "__main__":
    README.write_text(rendered(), encoding="utf-8")
