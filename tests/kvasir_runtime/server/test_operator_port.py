"""The operator port: probes without a token, /admin with it."""

import pytest

from kvasir_runtime.contract.admin_api import AdminState, LivenessState, Phase, ReadinessState
from tests.kvasir_runtime.server.harness import call


def test_probes_need_no_token(server):
    """A ready server is alive, started and ready, and says what the start took."""
    live = LivenessState.model_validate(server.probe("/livez").json())
    assert live.alive
    assert live.heartbeat_age_s < 5
    for path in ("/startupz", "/readyz"):
        reply = server.probe(path)
        state = ReadinessState.model_validate(reply.json())
        assert (reply.status_code, state.ready, state.startup.phase) == (200, True, Phase.SERVING)
        assert state.startup.seconds["total"] >= state.startup.seconds["weights"] >= 0


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic operator-token", "operator-token", "Bearer"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/admin/state"), ("POST", "/admin/drain"), ("POST", "/admin/undrain")]
)
def test_admin_needs_the_token(server, method, path, authorization):
    """401 for whoever does not present the operator's token."""
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = call(method, server.admin_url + path, headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_token"


def test_user_port_has_no_admin(server):
    """The operator's endpoints are not to be found on the users' port."""
    for path in ("/admin/state", "/livez", "/readyz"):
        assert call("GET", server.url + path).status_code == 404


def test_admin_state(server):
    """Everything the operator plans with, after some work."""
    server.complete(max_tokens=3)
    state = AdminState.model_validate(server.admin("GET", "/admin/state").json())
    assert len(state.boot_id) == 32
    assert (state.model_digest, state.draining, state.inflight, state.running) == ("fake", False, 0, 0)
    assert state.kv is not None
    assert (state.kv.block_size, state.kv.blocks_total) == (16, 1024)
    assert state.capacity is not None
    assert (state.capacity.kv_tokens, state.capacity.max_model_len) == (16384, 2048)
    assert state.capacity.max_concurrent_sequences == 8
    assert state.latency.ttft_p95 is not None
    assert state.startup.phase is Phase.SERVING


def test_drain_and_undrain(server):
    """A drained server refuses new work with Retry-After and is not ready; undrained it serves again."""
    drained = server.admin("POST", "/admin/drain", json={"timeout_s": 60})
    assert drained.json() == {"draining": True, "inflight": 0}
    refused = server.complete(max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    assert server.probe("/readyz").json()["reason"] == "draining"
    assert call("GET", f"{server.url}/health").status_code == 503
    assert server.probe("/livez").status_code == 200
    assert 'kvasir:draining{engine="0",model_name="tiny"} 1.0' in call("GET", f"{server.url}/metrics").text
    assert server.admin("POST", "/admin/undrain").json()["draining"] is False
    assert server.complete(max_tokens=1).status_code == 200
    assert server.probe("/readyz").status_code == 200


def test_drain_bounds(server):
    """A negative deadline is refused with its path, bound and value."""
    reply = server.admin("POST", "/admin/drain", json={"timeout_s": -1})
    assert reply.status_code == 400
    assert "timeout_s must be greater than or equal to 0, got -1" in reply.json()["error"]["message"]
