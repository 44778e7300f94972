"""The command line: every verb parses, explains itself, and fails with words."""

from pathlib import Path

import pytest

from e2e.cluster.__main__ import VERBS, main
from e2e.cluster.cli import parser

LINES = [
    ["up"],
    ["up", "--binaries", "/opt/kubernetes"],
    ["down"],
    ["leftovers"],
    ["load-image", "a", "b.tar"],
    ["volume", "models", "/srv/models", "--claim", "default/models"],
    ["nodes", "add", "--count", "3", "--mig", "1g.10gb=7"],
    ["nodes", "remove", "gpu-node-1"],
    ["gpus", "2"],
    ["status"],
    ["kubeconfig"],
    ["logs", "kubelet", "-f"],
    ["kubectl", "--", "get", "pods"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_every_verb_parses_and_has_an_action(line: list[str]) -> None:
    """What the parser accepts, the program can do."""
    parsed = parser().parse_args(line)
    assert (f"nodes {parsed.action}" if parsed.verb == "nodes" else parsed.verb) in VERBS


@pytest.mark.parametrize("verb", ["up", "down", "load-image", "volume", "nodes", "gpus", "status", "logs", "kubectl"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`VERB --help` ends well and says what the verb does."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([verb, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 4


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVASIR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("KVASIR_E2E_USE_CONTEXT", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (["kubeconfig"], 3, "no cluster here; `up` makes one"),
        (["status"], 3, "no cluster here"),
        (["--name", "Bad_Name", "status"], 2, "1 to 20"),
        (["nodes", "add", "--count", "0"], 2, "--count 0: at least 1"),
        (["nodes", "add", "--gpus", "-1"], 2, "must be at least 0"),
        (["nodes", "add", "--mig", "x"], 2, "PROFILE=NUMBER"),
        (["logs", "nothing"], 2, "no log of 'nothing'"),
        (["gpus", "1"], 3, "no cluster here"),
    ],
)
def test_errors_are_words_with_a_status(
    empty_cache: Path, capsys: pytest.CaptureFixture[str], line: list[str], status: int, message: str
) -> None:
    """No traceback: what is wrong, and an exit status that a script can tell apart."""
    assert main(["--name", "unit-test", *line] if line[0] != "--name" else line) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("line", [["nodes", "add"], ["gpus", "1"], ["volume", "a", "/tmp"], ["logs"]])
def test_a_foreign_cluster_is_not_changed(
    empty_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    """With a context named, verbs that would change it are refused."""
    monkeypatch.setenv("KVASIR_E2E_USE_CONTEXT", "kind-kind")
    assert main(line) == 2
    assert "was not made here" in capsys.readouterr().err


def test_down_leaves_a_foreign_cluster_alone(
    empty_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so and succeeds, so that scripts can call it always."""
    monkeypatch.setenv("KVASIR_E2E_USE_CONTEXT", "kind-kind")
    assert main(["down"]) == 0
    assert "left as it is" in capsys.readouterr().out
