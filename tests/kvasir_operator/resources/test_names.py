"""Names that fit where they are used."""

import re

from kvasir_operator.api.base import NAME_MAX_LENGTH
from kvasir_operator.resources import names
from kvasir_operator.resources.template_hash import DIGEST_LENGTH


def test_the_longest_pod_name_is_a_host_name() -> None:
    longest = names.pod_name("a" * NAME_MAX_LENGTH, "f" * DIGEST_LENGTH, "x" * names.SUFFIX_LENGTH)
    assert len(longest) <= 63
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", longest)


def test_labels_fit_into_63_characters() -> None:
    labels = names.replica_labels("a" * NAME_MAX_LENGTH, "f" * DIGEST_LENGTH)
    assert all(len(value) <= 63 for value in labels.values())


def test_the_selector_is_part_of_the_labels() -> None:
    assert names.replica_selector("tiny").items() <= names.replica_labels("tiny", "abc").items()
    assert names.selector_text(names.replica_selector("tiny")) == (
        "app.kubernetes.io/component=runtime,kvasir.dev/service=tiny"
    )


def test_the_address_of_a_service() -> None:
    assert names.service_url("tiny", "team") == "http://tiny.team.svc:8000"
