"""The operator's port, settings and files."""

import argparse
import json

import pytest

from kvasir_router.configuration import Configuration
from kvasir_router.operator_port import parse_config
from kvasir_router.settings import RouterSettings, add_arguments, read_settings
from kvasir_runtime.contract.failures import KvasirError
from kvasir_runtime.contract.router_api import RouterConfig, RouterState

TOKEN = {"Authorization": "Bearer operator-token"}
CONFIG = {"version": "7", "endpoints": [{"name": "a", "address": "10.0.0.1:8000"}]}


async def test_probes_need_no_token_and_admin_does(start):
    router = await start()
    get = router.client.get
    assert (await get(f"{router.admin_url}/livez")).status_code == 200
    assert (await get(f"{router.admin_url}/readyz")).status_code == 503
    assert (await get(f"{router.admin_url}/admin/state")).status_code == 401
    assert (await get(f"{router.admin_url}/nothing", headers=TOKEN)).status_code == 404


async def test_a_configuration_is_pushed_and_told(start, tmp_path):
    """The state repeats its version; another process begins without one, and with another boot id."""
    router = await start(state_file=str(tmp_path / "state.json"))
    before = RouterState.model_validate(
        (await router.client.get(f"{router.admin_url}/admin/state", headers=TOKEN)).json()
    )
    assert before.config_version is None
    assert (await router.client.get(f"{router.admin_url}/admin/config", headers=TOKEN)).status_code == 404
    pushed = await router.client.put(f"{router.admin_url}/admin/config", headers=TOKEN, json=CONFIG)
    after = RouterState.model_validate(pushed.json())
    assert (after.config_version, after.boot_id, after.endpoints[0].name) == ("7", before.boot_id, "a")
    assert (await router.client.get(f"{router.admin_url}/readyz")).status_code == 200
    shown = await router.client.get(f"{router.admin_url}/admin/config", headers=TOKEN)
    assert RouterConfig.model_validate(shown.json()).version == "7"
    again = await start(state_file=str(tmp_path / "state.json"))
    assert again.router.config.version == "7"  # kept over the end of the process, until the operator pushes anew
    assert again.router.boot_id != after.boot_id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"endpoints": [{"name": "a", "address": "nowhere"}]}, "endpoints.0.address"),
        ({"endpoints": [CONFIG["endpoints"][0]] * 2}, "more than one is called a"),
        ({"policy": "Fastest"}, "policy"),
        ({"weights": {"new": 101}}, "less than or equal to 100, got 101"),
        ({"max_held_requests": -1}, "max_held_requests must be greater than or equal to 0, got -1"),
    ],
)
async def test_a_bad_configuration_is_refused_whole(start, change, told):
    router = await start()
    router.use()
    reply = await router.client.put(f"{router.admin_url}/admin/config", headers=TOKEN, json=CONFIG | change)
    assert reply.status_code == 400
    assert told in reply.json()["error"]["message"]
    assert router.router.config.endpoints == []


def test_a_file_is_read_when_it_changes(tmp_path):
    """One that cannot be used leaves all as it is."""
    applied: list[str] = []
    file = tmp_path / "endpoints.json"
    file.write_text(json.dumps(CONFIG))
    configuration = Configuration(lambda config: applied.append(config.version), parse_config, str(file), None)
    configuration.start()
    configuration.look()
    (tmp_path / "new").write_text(json.dumps(CONFIG | {"version": "8"}))
    (tmp_path / "new").replace(file)
    configuration.look()
    file.write_text("{")
    configuration.look()
    file.unlink()
    configuration.look()
    assert applied == ["7", "8"]


def test_a_start_without_a_usable_file_is_refused(tmp_path):
    for file in (tmp_path / "none", tmp_path):
        with pytest.raises(KvasirError, match="--endpoints-file"):
            Configuration(lambda _: None, parse_config, str(file), None).start()
    (tmp_path / "kept").write_text("{")  # what was kept is a hint: the operator pushes again
    Configuration(lambda _: None, parse_config, None, str(tmp_path / "kept")).start()


def settings(*argv: str, **environ: str) -> RouterSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(parser.parse_args(argv), environ)


def test_flags_win_over_variables():
    read = settings("--port", "9000", "--hold-timeout", "5m", KVASIR_ROUTER_PORT="1", KVASIR_ROUTER_ADMIN_PORT="9001")
    assert (read.port, read.admin_port, read.hold_timeout) == (9000, 9001, 300.0)
    assert settings("--max-body-bytes", "1Mi").max_body_bytes == 2**20


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--port", "0"], "--port must be greater than or equal to 1, got '0'"),
        (["--port", "8001"], "port and admin_port must differ, both are 8001"),
        (["--hold-timeout", "soon"], "--hold-timeout"),
        (["--max-streams-per-key", "3"], "needs api_key or api_key_file"),
    ],
)
def test_bad_settings_name_flag_bound_and_value(argv, told):
    with pytest.raises(KvasirError) as caught:
        settings(*argv)
    assert told in str(caught.value.report.message)


def test_bad_variables_are_named():
    with pytest.raises(KvasirError, match="KVASIR_ROUTER_PORT"):
        settings(KVASIR_ROUTER_PORT="http")
