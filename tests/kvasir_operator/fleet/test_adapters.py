"""What engines are told of adapters, when again, and what became of each."""

from datetime import timedelta

import pytest

from kvasir_operator.api.model import AdapterSpec
from kvasir_operator.fleet.adapters import (
    AdapterWish,
    Told,
    is_settled,
    next_look,
    retry_at,
    statuses,
    version_at,
    wanted_set,
    wishes_of,
)
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.admin_api import AdapterReport, AdapterReports
from tests.kvasir_operator.planning.builders import NOW

DIGEST, OTHER = "a" * 64, "b" * 64


def wishes(*names: str, uri: str = "s3://bucket/{}", **fields: object) -> tuple[AdapterWish, ...]:
    specs = [AdapterSpec.model_validate({"name": name, "source": {"uri": uri.format(name)}} | fields) for name in names]
    return wishes_of(specs, Settings())


def report(name: str, state: str = "loaded", **fields: object) -> AdapterReport:
    digest = {"digest": DIGEST} if state == "loaded" else {}
    return AdapterReport.model_validate({"name": name, "uri": "u", "state": state} | digest | fields)


def told(pod: str, asked: tuple[AdapterWish, ...], *reports: AdapterReport, tag: str | None = None) -> Told:
    wanted = wanted_set(asked, "", NOW)
    return Told(pod, wanted, AdapterReports(boot_id="b", tag=wanted.tag if tag is None else tag, adapters=[*reports]))


def test_the_same_set_has_the_same_tag() -> None:
    """Another adapter, digest or annotation has another one."""
    one = wanted_set(wishes("a", "b"), "", NOW)
    assert wanted_set(wishes("a", "b"), "", NOW + timedelta(days=1)).tag == one.tag
    others = [wanted_set(wishes("a"), "", NOW), wanted_set(wishes("a", "b"), "2", NOW)]
    others.append(wanted_set(wishes("a", "b", pinned=True), "", NOW))
    assert len({one.tag, *(each.tag for each in others)}) == 4


def test_a_source_is_looked_at_once_an_interval() -> None:
    """The number of the interval is the same for all, whoever computes it; the next look is when it changes."""
    [wish] = wishes("a", refreshInterval="10m")
    due = next_look([wish], NOW)
    assert due is not None
    assert NOW < due <= NOW + timedelta(minutes=10)
    before, after = due - timedelta(seconds=1), due + timedelta(seconds=1)
    assert version_at(wish, "x", NOW) == version_at(wish, "x", before) != version_at(wish, "x", after)
    assert next_look(wishes("a"), NOW) is None


def test_a_claim_is_where_it_is_mounted() -> None:
    """Addresses as the engine knows them."""
    [wish] = wishes("a", uri="pvc://claim/deep/{}")
    assert wish.wanted.uri == "file:///adapters/claim/deep/a"


def test_what_the_settings_refuse_is_told_and_left_out() -> None:
    """The others are served."""
    asked = wishes("a", uri="file:///etc/{}") + wishes("b")
    assert [each.name for each in wanted_set(asked, "", NOW).adapters] == ["b"]
    refused, served = statuses(asked, [told("p", asked, report("b"))])
    assert (refused.cause, refused.replicas) == ("SourceNotAllowed", 0)
    assert "KVASIR_OPERATOR_ALLOW_FILE_SOURCES" in refused.message
    assert (served.ready_replicas, served.replicas) == (1, 1)


@pytest.mark.parametrize(("failures", "wait"), [(1, 10), (2, 20), (4, 80), (6, 300), (1000, 300)])
def test_waits_double(failures: int, wait: int) -> None:
    """Counted from the last failure."""
    failed = report("a", "failed", failures=failures, failed_for_s=4)
    assert retry_at(failed, NOW) == NOW + timedelta(seconds=wait - 4)


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        (report("a"), True),
        (report("a", "failed", failures=1), True),
        (report("a", "loading"), False),
        (report("a", "loading", digest=DIGEST), True),
        (report("a", "loading", failures=2), True),
    ],
    ids=["loaded", "failed", "first load", "a new version loads", "is tried again"],
)
def test_when_it_is_known_how_an_adapter_fares(found: AdapterReport, settled: bool) -> None:
    """What others do not have to wait for any more."""
    assert is_settled(found) is settled


def test_an_adapter_that_fails_on_one_replica() -> None:
    """Where, why, how often, and what goes on being served."""
    asked = wishes("a")
    bad = report("a", "failed", cause="AdapterInvalid", message="rank", remedy="mend it", failures=3, digest=OTHER)
    [found] = statuses(asked, [told("p", asked, report("a")), told("q", asked, bad)])
    assert (found.ready_replicas, found.updated_replicas, found.replicas) == (2, 1, 2)
    assert (found.digest, found.cause) == (DIGEST, "AdapterInvalid")
    assert found.message == (f"q: rank (mend it); failed 3 times; the version before, {OTHER[:12]}, goes on")


def test_an_engine_that_lies_about_its_digest_is_not_believed() -> None:
    """It says that it serves what was not asked for."""
    asked = wishes("a", source={"uri": "s3://bucket/a", "sha256": OTHER})
    [found] = statuses(asked, [told("p", asked, report("a"))])
    assert (found.ready_replicas, found.cause) == (0, "AdapterInvalid")
    assert "expected" in found.message


def test_what_was_said_of_another_set_is_not_known() -> None:
    """A process that was told something else has not been told yet."""
    asked = wishes("a")
    [found] = statuses(asked, [told("p", asked, report("a"), tag="another")])
    assert (found.ready_replicas, found.updated_replicas, found.digest) == (1, 0, DIGEST)
    assert (found.cause, found.message) == ("", "p: not told yet")


def test_the_reason_stays_while_it_is_tried_again() -> None:
    """Else condition and Events would speak of every attempt."""
    asked = wishes("a")
    bad = report("a", "failed", cause="SourceUnreachable", message="down", failures=1)
    before = statuses(asked, [told("p", asked, bad)])
    [found] = statuses(asked, [told("p", asked, report("a", "loading", failures=1))], before)
    assert (found.cause, found.message) == ("SourceUnreachable", "p: down")
    [found] = statuses(asked, [told("p", asked, report("a"))], before)
    assert (found.cause, found.message) == ("", "")
