"""The Secret, the configuration and the server agree, whatever happens to them, and whoever else writes."""

import base64
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from kvasir_operator.api.base import format_time
from kvasir_operator.certificates import AUTHORITY_LIFETIME, LIFETIME, Certificates
from kvasir_operator.cluster import MUTATING, VALIDATING, Kind
from kvasir_operator.errors import ApiError
from kvasir_operator.resources import names
from kvasir_operator.webhook_certificates import CertificateKeeper, manifest_of
from tests.kvasir_operator.admission.fakes import FakeApi

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOST = names.webhook_host("kvasir-system")


class Replica:
    """One operator's keeper with a clock that the test moves."""

    def __init__(self, api: FakeApi) -> None:
        self.now = NOW
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.keeper = CertificateKeeper(api.cluster, "kvasir-system", context, lambda: self.now)

    @property
    def serves(self) -> Certificates:
        assert self.keeper._served is not None
        return self.keeper._served

    async def turn(self, later: timedelta = timedelta(0)) -> None:
        self.now += later
        await self.keeper.turn()


async def started(api: FakeApi, count: int = 1) -> list[Replica]:
    replicas = [Replica(api) for _ in range(count)]
    for each in replicas:
        await each.turn()
    return replicas


async def test_the_first_replica_makes_what_all_serve() -> None:
    api = FakeApi()
    first, second = await started(api, 2)
    assert first.serves == second.serves == api.certificates
    assert api.bundle == api.certificates.bundle
    assert api.writes == ["secret", "validatingwebhookconfigurations", "mutatingwebhookconfigurations"]


async def test_a_replica_that_was_outrun_takes_what_the_other_made() -> None:
    api = FakeApi()
    made = Certificates.make(HOST, NOW)
    api.rival = manifest_of("kvasir-system", made)
    [replica] = await started(api)
    assert replica.serves == api.certificates == made


async def test_nothing_is_written_at_rest() -> None:
    api = FakeApi()
    [replica] = await started(api)
    before = list(api.writes)
    await replica.turn(timedelta(days=20))
    assert api.writes == before


async def test_a_new_certificate_of_the_same_authority_is_served_at_once() -> None:
    api = FakeApi()
    first, second = await started(api, 2)
    old = first.serves
    await first.turn(LIFETIME - timedelta(days=20))
    assert first.serves == api.certificates != old
    assert first.serves.bundle == old.bundle
    assert second.serves == old
    await second.turn(LIFETIME - timedelta(days=20))
    assert second.serves == first.serves


async def test_a_new_authority_is_trusted_a_turn_before_it_is_used() -> None:
    api = FakeApi()
    first, second = await started(api, 2)
    age = LIFETIME - timedelta(days=20)
    while api.certificates.authority == first.serves.authority:
        await first.turn(age)
        second.now = first.now
    assert api.bundle == api.certificates.bundle
    assert first.serves.authority in api.bundle
    await first.turn(timedelta(seconds=30))
    await second.turn(timedelta(seconds=30))
    assert first.serves == second.serves == api.certificates


async def test_an_expired_certificate_is_replaced_without_waiting() -> None:
    api = FakeApi()
    [replica] = await started(api)
    await replica.turn(AUTHORITY_LIFETIME + timedelta(days=1))
    assert replica.serves == api.certificates
    assert replica.serves.expires > replica.now, format_time(replica.now)


async def test_deleting_the_secret_makes_new_keys_while_the_old_ones_stay_trusted() -> None:
    api = FakeApi()
    first, second = await started(api, 2)
    old = first.serves
    api.secret = None
    await first.turn()
    assert first.serves == second.serves == old
    assert old.authority in api.bundle
    await first.turn()
    assert first.serves == api.certificates
    assert first.serves.authority != old.authority
    await second.turn()
    assert second.serves == first.serves


async def test_certificates_that_somebody_put_there_are_served_at_once() -> None:
    """What was served until now is not trusted any more: waiting would refuse everybody."""
    api = FakeApi()
    [replica] = await started(api)
    made = Certificates.make(HOST, NOW)
    api.put(manifest_of("kvasir-system", made))
    await replica.turn()
    assert replica.serves == made
    assert api.bundle == made.bundle


@pytest.mark.parametrize("part", ["tls.key", "ca.crt", "ca.key"])
async def test_a_secret_that_somebody_broke_is_made_anew(part: str) -> None:
    api = FakeApi()
    [replica] = await started(api)
    assert api.secret is not None
    api.secret["data"][part] = base64.b64encode(b"nonsense").decode()
    await replica.turn()
    await replica.turn()
    assert replica.serves == api.certificates


@pytest.mark.parametrize("kind", [VALIDATING, MUTATING], ids=["validating", "mutating"])
async def test_a_bundle_that_somebody_removed_comes_back(kind: Kind) -> None:
    """As when the manifests are replaced, not applied."""
    api = FakeApi()
    [replica] = await started(api)
    del api.configurations[kind]["webhooks"][0]["clientConfig"]["caBundle"]
    await replica.turn()
    assert api.bundle == replica.serves.bundle


@pytest.mark.parametrize("kind", [VALIDATING, MUTATING], ids=["validating", "mutating"])
async def test_one_of_the_two_may_be_left_out(kind: Kind) -> None:
    """As by who wants no defaults."""
    api = FakeApi()
    del api.configurations[kind]
    [replica] = await started(api)
    assert replica.serves == api.certificates
    assert api.bundle == replica.serves.bundle


async def test_missing_configurations_are_an_error_that_passes(caplog: pytest.LogCaptureFixture) -> None:
    api = FakeApi()
    configurations, api.configurations = api.configurations, {}
    replica = Replica(api)
    with pytest.raises(ApiError):
        await replica.keeper.turn()
    assert not await replica.keeper.guarded_turn()
    assert f'"{names.WEBHOOK_CONFIGURATION}" not found' in caplog.text
    api.configurations = configurations
    assert await replica.keeper.guarded_turn()
    assert replica.serves == api.certificates
