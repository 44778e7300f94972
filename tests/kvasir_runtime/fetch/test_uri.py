"""Addresses are read, or refused with the reason."""

from pathlib import Path

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.uri import (
    Address,
    FileAddress,
    HttpAddress,
    HubAddress,
    S3Address,
    parse_uri,
    without_credentials,
)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://host/models/llama/", HttpAddress("https://host/models/llama")),
        ("https://host/m?sig=a%2Fb#x", HttpAddress("https://host/m?sig=a%2Fb")),
        ("s3://bucket", S3Address("bucket", "")),
        ("s3://bucket/a/b/", S3Address("bucket", "a/b")),
        ("hf://org/name", HubAddress("org/name", "main")),
        ("hf://org/name@v1.0", HubAddress("org/name", "v1.0")),
        ("hf://gpt2@refs/pr/1", HubAddress("gpt2", "refs/pr/1")),
        ("file:///models/a%20b", FileAddress(Path("/models/a b"))),
    ],
)
def test_each_scheme_has_its_address(uri: str, address: Address) -> None:
    assert parse_uri(uri) == address


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("models/llama", "no scheme"),
        ("s3://", "no scheme"),
        ("ftp://host/x", "ftp:// is no known scheme"),
        ("pvc://claim/path", "mounted, not fetched"),
        ("hf://a/b/c", "'a/b/c' is no repository"),
        ("file://models", "not absolute"),
        ("https:///path", "names no host"),
        ("https://host/model.tar.zst?x", "that kind of file cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(uri: str, why: str) -> None:
    with pytest.raises(KvasirError, match=why) as refused:
        parse_uri(uri)
    assert refused.value.report.cause is Cause.INVALID_ARGUMENTS
    assert refused.value.report.remedy


@pytest.mark.parametrize(("path", "archive"), [("m.tar", True), ("m.tar.gz", True), ("m.zip", True), ("m.bin", False)])
def test_archives_are_known_by_their_name(path: str, archive: bool) -> None:
    assert HttpAddress(f"https://host/{path}?token=x.tar").is_archive is archive


def test_credentials_never_reach_a_log() -> None:
    assert without_credentials("https://user:pass@host:8443/m?X-Amz-Signature=secret#f") == "https://host:8443/m?…"
