"""Adapters over HTTP: the operator's wanted set, vLLM's endpoints, what is refused and where files may come from."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvasir_runtime.contract.admin_api import AdapterReports, AdminState
from tests.kvasir_runtime.lora.adapters import LEGAL, PIRATE, TINY_LLAMA, digest_of
from tests.kvasir_runtime.server.harness import Server, call, launch, wait_until

FLAGS = ("--served-model-name", "tiny", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The allowed folder, with copies of the committed adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    for source in (PIRATE, LEGAL):
        shutil.copytree(source, folder / source.name.removeprefix("tiny-llama-"))
    return folder


@pytest.fixture(scope="module")
def shared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the fake core that lets users load adapters."""
    flags = (*FLAGS, "--lora-roots", str(root), "--allow-runtime-lora-updating")
    server = launch(tmp_path_factory.mktemp("lora-server"), *flags).wait_ready()
    yield server
    server.stop()


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The same, without adapters before and after."""
    yield shared
    want(shared)


def want(server: Server, *adapters: dict[str, Any]) -> AdapterReports:
    """PUT a set and wait until nothing loads any more."""
    reply = server.admin("PUT", "/admin/adapters", json={"adapters": list(adapters)})
    assert reply.status_code == 200, reply.text
    wait_until(lambda: all(report.state != "loading" for report in seen(server).adapters))
    return seen(server)


def seen(server: Server) -> AdapterReports:
    return AdapterReports.model_validate(server.admin("GET", "/admin/adapters").json())


def names(server: Server) -> dict[str, str | None]:
    rows = call("GET", f"{server.url}/v1/models").json()["data"]
    return {row["id"]: row["parent"] for row in rows}


def post(server: Server, path: str, **body: Any) -> Any:
    return call("POST", f"{server.url}/v1/{path}", json=body, timeout=30)


def test_the_wanted_set_is_served(server: Server, root: Path) -> None:
    """Two adapters with their digests become rows of /v1/models with a parent, and answer under their names."""
    digest = digest_of(TINY_LLAMA, PIRATE)
    reports = want(
        server,
        {"name": "pirate", "uri": f"file://{root}/pirate", "digest": digest, "pinned": True},
        {"name": "legal", "uri": f"{root}/legal"},
    )
    assert [(one.name, one.state, one.message) for one in reports.adapters] == [
        ("pirate", "loaded", ""),
        ("legal", "loaded", ""),
    ]
    assert reports.adapters[0].digest == digest
    assert names(server) == {"tiny": None, "pirate": "tiny", "legal": "tiny"}
    assert server.complete(model="pirate", max_tokens=2).json()["model"] == "pirate"
    state = AdminState.model_validate(server.admin("GET", "/admin/state").json())
    rows = {row.name: (row.residency, row.bytes, row.refs) for row in state.adapters}
    assert rows == {"pirate": ("device", 1000, 0), "legal": ("host", 1000, 0)}
    card = call("GET", f"{server.url}/v1/models/pirate").json()
    assert (card["root"], card["parent"]) == (f"file://{root}/pirate", "tiny")


def test_an_unknown_name_is_404(server: Server) -> None:
    """In OpenAI's shape, with what is served."""
    reply = server.complete(model="nobody", max_tokens=1)
    assert reply.status_code == 404
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"] == "model 'nobody' does not exist; served: tiny"


def test_what_is_wanted_no_more_goes(server: Server, root: Path) -> None:
    """The name is gone at once; the version is gone from the engine's memory."""
    want(server, {"name": "pirate", "uri": f"{root}/pirate"})
    want(server)
    assert names(server) == {"tiny": None}
    wait_until(lambda: not seen(server).versions)
    assert server.complete(model="pirate", max_tokens=1).status_code == 404


def test_a_new_version_takes_the_name(server: Server, root: Path) -> None:
    """Another source under the same name flips; the old version leaves; the same set again changes nothing."""
    first = want(server, {"name": "a", "uri": f"{root}/pirate"}).adapters[0].digest
    second = want(server, {"name": "a", "uri": f"{root}/legal"}).adapters[0].digest
    assert first != second
    wait_until(lambda: [version.digest for version in seen(server).versions] == [second])
    assert want(server, {"name": "a", "uri": f"{root}/legal"}).adapters[0].digest == second


def test_another_version_has_the_source_looked_at_again(server: Server, root: Path) -> None:
    """A link that leads elsewhere is followed when the version changes, and only then; the tag is repeated."""
    link = root / "current"
    link.symlink_to(root / "pirate")
    try:
        first = want(server, {"name": "a", "uri": str(link), "version": "1"}).adapters[0].digest
        link.unlink()
        link.symlink_to(root / "legal")
        assert want(server, {"name": "a", "uri": str(link), "version": "1"}).adapters[0].digest == first
        assert want(server, {"name": "a", "uri": str(link), "version": "2"}).adapters[0].digest != first
    finally:
        link.unlink()
    body = {"adapters": [], "tag": "set-7"}
    assert server.admin("PUT", "/admin/adapters", json=body).json()["tag"] == "set-7"
    assert seen(server).tag == "set-7"


def test_failures_and_demand_are_counted(server: Server, root: Path) -> None:
    """Attempts that failed in a row, until one does not; requests that came for a name."""
    bad, good = {"name": "a", "uri": f"{root}/nothing"}, {"name": "a", "uri": f"{root}/pirate"}
    assert want(server, bad).adapters[0].failures == 1
    report = want(server, bad).adapters[0]
    assert (report.state, report.failures) == ("failed", 2)
    assert report.failed_for_s >= 0
    assert want(server, good).adapters[0].failures == 0
    for _ in range(3):
        assert server.complete(model="a", max_tokens=1).status_code == 200
    [version] = seen(server).versions
    assert 2.9 < version.demand <= 3
    state = AdminState.model_validate(server.admin("GET", "/admin/state").json())
    assert state.capacity is not None
    assert state.capacity.max_adapters == 2


def test_two_names_share_one_version(server: Server, root: Path) -> None:
    """The version stays while one of the names is wanted."""
    both = [{"name": name, "uri": f"{root}/legal"} for name in ("a", "b")]
    digest = want(server, *both).adapters[0].digest
    assert [version.digest for version in seen(server).versions] == [digest]
    want(server, both[1])
    assert [version.digest for version in seen(server).versions] == [digest]
    assert server.complete(model="b", max_tokens=1).status_code == 200


def test_a_failure_keeps_the_version_before(server: Server, root: Path) -> None:
    """A wrong digest is told with both digests; the name goes on with what it had; the right one mends it."""
    good = want(server, {"name": "a", "uri": f"{root}/pirate"}).adapters[0]
    bad = want(server, {"name": "a", "uri": f"{root}/legal", "digest": "0" * 64}).adapters[0]
    assert (bad.state, bad.cause, bad.digest) == ("failed", "AdapterInvalid", good.digest)
    assert "expected 000" in bad.message
    assert server.complete(model="a", max_tokens=1).status_code == 200
    mended = want(server, {"name": "a", "uri": f"{root}/legal"}).adapters[0]
    assert (mended.state, mended.cause) == ("loaded", "")


def test_broken_adapters_fail_alone(server: Server, root: Path) -> None:
    """One of three cannot be had: the others are served, and a request for it says why."""
    reports = want(
        server,
        {"name": "a", "uri": f"{root}/pirate"},
        {"name": "gone", "uri": f"{root}/nowhere"},
        {"name": "b", "uri": f"{root}/legal"},
    )
    assert [one.state for one in reports.adapters] == ["loaded", "failed", "loaded"]
    assert reports.adapters[1].message == f"No adapter found for {root}/nowhere"
    refused = server.complete(model="gone", max_tokens=1)
    assert refused.status_code == 404
    assert "is not loaded: No adapter found" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("uri", "cause", "words"),
    [
        ("/etc", "SourceForbidden", "/etc is outside of the folders"),
        ("{root}/../../../../../../etc", "SourceForbidden", "is outside of the folders"),
        ("file://{root}/link", "SourceForbidden", "is outside of the folders"),
        ("{root}/linked-weights", "SourceForbidden", "is outside of the folders"),
        ("s3://bucket/adapter", "SourceForbidden", "may not be loaded from s3://"),
        ("https://host/adapter", "SourceForbidden", "may not be loaded from https://"),
        ("pirate", "InvalidArguments", "it has no scheme"),
        ("pvc://claim/pirate", "InvalidArguments", "a volume claim is mounted"),
        ("{root}/pickle", "AdapterInvalid", "adapter_model.bin is a pickle, which is never loaded"),
        ("{root}/empty", "AdapterInvalid", "holds no adapter_config.json"),
    ],
)
def test_where_files_may_come_from(server: Server, root: Path, uri: str, cause: str, words: str) -> None:
    """Links and `..` are followed before the roots are compared; schemes must be allowed; no pickle is read."""
    outside = root.parent / "outside"
    if not outside.exists():
        shutil.copytree(PIRATE, outside)
        (root / "link").symlink_to(outside)
        for name in ("linked-weights", "pickle"):
            (root / name).mkdir()
            shutil.copy(PIRATE / "adapter_config.json", root / name)
        (root / "linked-weights" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
        (root / "pickle" / "adapter_model.bin").write_bytes(b"\x80\x04.")
        (root / "empty").mkdir()
    report = want(server, {"name": "a", "uri": uri.format(root=root)}).adapters[0]
    assert (report.state, report.cause) == ("failed", cause)
    assert words in report.message
    assert report.remedy


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        (
            [{"name": "tiny", "uri": "/x"}],
            "adapters[0].name must differ from the names of the model itself",
        ),
        ([{"name": "a", "uri": "/x"}] * 2, "adapters[1].name must differ from adapters[0].name, got 'a'"),
        ([{"name": "", "uri": "/x"}], "adapters[0].name string must have at least 1 character"),
        ([{"name": "a", "uri": "https://["}], "adapters[0].uri"),
        ([{"name": "a", "uri": "/x\0"}], "adapters[0].uri string should match pattern"),
        ([{"name": "a", "uri": "/x", "digest": "12"}], "adapters[0].digest string should match pattern"),
        (
            [{"name": name, "uri": "/x", "pinned": name != "c"} for name in "abc"],
            "at most 1 of these 3 adapters may be pinned with --max-loras 2, got 2",
        ),
    ],
)
def test_a_set_that_cannot_be_is_refused(server: Server, adapters: list[dict[str, Any]], words: str) -> None:
    """Path, bound and value are named, and nothing changes."""
    reply = server.admin("PUT", "/admin/adapters", json={"adapters": adapters})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert not seen(server).adapters


def test_vllms_endpoints(server: Server, root: Path) -> None:
    """Load, load again, load in place, unload, unload again: vLLM's statuses, shapes and words."""
    loaded = post(server, "load_lora_adapter", lora_name="sql", lora_path=f"{root}/pirate")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    again = post(server, "load_lora_adapter", lora_name="sql", lora_path=f"{root}/legal")
    assert again.status_code == 400
    assert again.json() == {
        "error": {
            "message": "The lora adapter 'sql' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
            "type": "InvalidUserInput",
            "param": None,
            "code": 400,
        }
    }
    before = seen(server).adapters[0].digest
    assert post(server, "load_lora_adapter", lora_name="sql", lora_path=f"{root}/legal", load_inplace=True).is_success
    assert seen(server).adapters[0].digest != before
    assert post(server, "unload_lora_adapter", lora_name="sql").text == (
        "Success: LoRA adapter 'sql' removed successfully."
    )
    gone = post(server, "unload_lora_adapter", lora_name="sql")
    assert gone.status_code == 404
    assert gone.json()["error"] == {
        "message": "The lora adapter 'sql' cannot be found.",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        ("load", {"lora_name": "", "lora_path": "/x"}, 400, "InvalidUserInput",
         "Both 'lora_name' and 'lora_path' must be provided."),
        ("load", {"lora_name": "tiny", "lora_path": "/x"}, 400, "InvalidUserInput",
         "The lora adapter 'tiny' conflicts with a served base model."),
        ("load", {"lora_name": "a", "lora_path": "{root}/none"}, 404, "NotFoundError",
         "Loading lora a failed: No adapter found for {root}/none"),
        ("load", {"lora_name": "a", "lora_path": "/etc"}, 400, "BadRequestError", None),
        ("unload", {"lora_name": ""}, 400, "InvalidUserInput",
         "'lora_name' needs to be provided to unload a LoRA adapter."),
    ],
)  # fmt: skip
def test_vllms_refusals(
    server: Server, root: Path, path: str, body: dict[str, Any], status: int, kind: str, message: str | None
) -> None:
    """What cannot be loaded is not there afterwards."""
    filled = {name: value.format(root=root) for name, value in body.items()}
    reply = post(server, f"{path}_lora_adapter", **filled)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (status, status, kind)
    if message is not None:
        assert error["message"] == message.format(root=root)
    assert names(server) == {"tiny": None}


def test_metrics_name_the_adapters(server: Server) -> None:
    """VLLM's series, with the time as its value."""
    text = call("GET", f"{server.url}/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{"))
    assert 'max_lora="2",running_lora_adapters="",waiting_lora_adapters=""' in line
    assert float(line.split()[-1]) > 1.6e9


def test_off_by_default(tmp_path: Path, root: Path) -> None:
    """Without the flags users cannot load adapters, and the operator is told that adapters are off."""
    server = launch(tmp_path).wait_ready()
    try:
        refused = post(server, "load_lora_adapter", lora_name="a", lora_path=f"{root}/pirate")
        assert refused.status_code == 404
        assert "--allow-runtime-lora-updating" in refused.json()["error"]["message"]
        reply = server.admin("PUT", "/admin/adapters", json={"adapters": [{"name": "a", "uri": f"{root}/pirate"}]})
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "adapters_off")
        assert server.admin("PUT", "/admin/adapters", json={"adapters": []}).status_code == 200
        assert "lora_requests_info" not in call("GET", f"{server.url}/metrics").text
    finally:
        server.stop()


def test_vllms_variable_lets_users_load(tmp_path: Path, root: Path) -> None:
    """VLLM_ALLOW_RUNTIME_LORA_UPDATING stands for the flag, as for those who come from vLLM."""
    server = launch(tmp_path, *FLAGS, "--lora-roots", str(root), env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"})
    try:
        server.wait_ready()
        assert post(server, "load_lora_adapter", lora_name="a", lora_path=f"{root}/pirate").status_code == 200
        assert names(server) == {"tiny": None, "a": "tiny"}
    finally:
        server.stop()
