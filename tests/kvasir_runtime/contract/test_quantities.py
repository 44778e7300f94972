import pytest

from kvasir_runtime.contract.quantities import format_bytes, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("512Mi", 512 * 2**20), ("1.5Gi", 3 * 2**29), ("2G", 2 * 10**9), (".5k", 500), ("1.0001", 2), (7, 7)],
)
def test_bytes_are_read_as_kubernetes_writes_them(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "Mi", "5MB", "-1", "1 Gi", "1e3", "five"])
def test_what_is_no_byte_count_is_quoted_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no byte count"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1024, "1Ki"), (1536, "1.5Ki"), (5 * 2**40, "5Ti"), (700 * 2**20, "700Mi")],
)
def test_bytes_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("1h30m", 5400.0), ("250ms", 0.25), ("2d", 172800.0), (5, 5.0), ("0s", 0.0)]
)
def test_durations_are_read_with_their_units(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1h 30m", "-5s"])
def test_what_is_no_duration_is_quoted_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)
