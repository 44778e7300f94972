"""How the API server is reached."""

import pytest

from kvasir_operator.connection import proxy_of


@pytest.mark.parametrize(
    ("server", "environ", "proxy"),
    [
        ("https://10.0.0.1:6443", {}, None),
        ("https://10.0.0.1:6443", {"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://10.0.0.1:6443", {"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://10.0.0.1:6443", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://10.0.0.1:6443", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "localhost,10.0.0.1"}, None),
        ("https://api.example.com", {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": ".example.com"}, None),
        (
            "https://api.example.com",
            {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "example.org"},
            "http://proxy:3128",
        ),
        ("https://api.example.com", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, None),
        ("", {"HTTPS_PROXY": "http://proxy:3128"}, None),
    ],
)
def test_a_proxy_is_used_where_the_environment_says_so(server: str, environ: dict[str, str], proxy: str | None) -> None:
    """As curl and aiohttp read these variables."""
    assert proxy_of(server, environ) == proxy
