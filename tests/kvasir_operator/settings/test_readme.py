"""The table of settings in operator/README.md is what the code says."""

import json
from typing import Any

from pydantic.fields import FieldInfo

from kvasir_operator.api.crd import ROOT
from kvasir_operator.api.kubernetes import ResourceRequirements
from kvasir_operator.settings import Settings, env_name


def table() -> list[str]:
    rows = [
        f"| `{env_name(name)}` | {shown_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return ["| variable | default | what, and why |", "|---|---|---|", *rows]


def shown_default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    match value:
        case ResourceRequirements():
            return f"`{json.dumps(value.to_manifest(), separators=(',', ':'))}`"
        case bool():
            return f"`{str(value).lower()}`"
        case None | "" | []:
            return "unset"
        case dict() if not value:
            return "unset"
        case float():
            return f"`{value:g}`"
        case _:
            return f"`{value}`"


def test_the_readme_lists_every_setting_as_it_is() -> None:
    """On failure, put the rows of `table()` between the marks."""
    readme = (ROOT / "operator" / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]
    assert listed.splitlines() == table()
