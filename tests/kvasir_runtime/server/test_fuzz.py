"""No input makes the server fail."""

from hypothesis import given, settings

from tests.kvasir_runtime.server.fuzz import SETTINGS, check, requests
from tests.kvasir_runtime.server.harness import call


@settings(SETTINGS, max_examples=150)
@given(requests(absurd=0.2))
def test_absurd_requests_are_answered_or_refused(server, sent):
    """Whatever a field holds: 200, or an error that names it."""
    check(server, *sent)
    assert call("GET", f"{server.url}/health").status_code == 200
