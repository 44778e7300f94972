"""Settings from the environment: defaults, values, and what is said about bad ones."""

import pytest

from kvasir_operator.api.kubernetes import ResourceRequirements
from kvasir_operator.settings import Settings, SettingsError, env_name, unknown_variables


def test_nothing_set_is_the_defaults() -> None:
    assert Settings.from_environment({"PATH": "/bin"}) == Settings()
    assert Settings().namespaces == []
    assert not Settings().allow_file_sources


def test_values_are_read_in_the_form_of_their_field() -> None:
    settings = Settings.from_environment(
        {
            "KVASIR_OPERATOR_NAMESPACES": "team-a, team-b,",
            "KVASIR_OPERATOR_SCRAPE_SECONDS": "1m30s",
            "KVASIR_OPERATOR_RESYNC_SECONDS": "12.5",
            "KVASIR_OPERATOR_ALLOW_FILE_SOURCES": "true",
            "KVASIR_OPERATOR_FILE_SOURCE_ROOTS": "/var/lib/models,/mnt",
            "KVASIR_OPERATOR_CPU_RESOURCES": '{"requests": {"cpu": 1}, "limits": {"memory": "2Gi"}}',
            "KVASIR_OPERATOR_MODEL_VOLUME_SIZE": "100Gi",
            "KVASIR_OPERATOR_PRODUCT_COSTS": '{"NVIDIA-L4": 0.7, "NVIDIA-H100": 3}',
        }
    )
    assert settings.namespaces == ["team-a", "team-b"]
    assert (settings.scrape_seconds, settings.resync_seconds) == (90.0, 12.5)
    assert settings.allow_file_sources
    assert settings.file_source_roots == ["/var/lib/models", "/mnt"]
    assert settings.cpu_resources == ResourceRequirements(requests={"cpu": 1}, limits={"memory": "2Gi"})
    assert settings.model_volume_size is not None
    assert settings.model_volume_size.bytes == 100 * 2**30
    assert settings.product_costs == {"NVIDIA-L4": 0.7, "NVIDIA-H100": 3.0}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("HEALTH_PORT", "0", 'must be at least 1, got "0"'),
        ("HEALTH_PORT", "http", 'must be a whole number, got "http"'),
        ("LOG_FORMAT", "xml", "must be one of 'auto', 'json' or 'pretty', got \"xml\""),
        ("ALLOW_FILE_SOURCES", "perhaps", 'must be true or false, got "perhaps"'),
        ("SCRAPE_SECONDS", "soon", "'soon' is no duration: write numbers with units, such as 90s, 5m or 1h30m"),
        ("SCRAPE_SECONDS", "0", "must be at least 0.5, got 0.0"),
        ("SHM_SIZE", "5MB", 'must be a byte count such as 512Mi, 8Gi or 2G, got "5MB"'),
        ("RUNTIME_IMAGE", "", 'must be at least 1 characters long, got ""'),
        ("CPU_RESOURCES", "[1]", "must be an object, got [1]"),
        ("PRODUCT_COSTS", "[1]", "must be an object, got [1]"),
        (
            "CPU_RESOURCES",
            "{cpu: 1}",
            (
                "must be a JSON object, got '{cpu: 1}': Expecting property name enclosed in double quotes: "
                "line 1 column 2 (char 1)"
            ),
        ),
        ("FILE_SOURCE_ROOTS", "models", "must be absolute paths without '..', got 'models'"),
        ("FILE_SOURCE_ROOTS", "/a/../b", "must be absolute paths without '..', got '/a/../b'"),
        (
            "LEASE_RENEW_DEADLINE_SECONDS",
            "20",
            "must be less than KVASIR_OPERATOR_LEASE_DURATION_SECONDS (15), got 20",
        ),
        ("LEASE_RETRY_SECONDS", "10", "must be less than KVASIR_OPERATOR_LEASE_RENEW_DEADLINE_SECONDS (10), got 10"),
        ("BACKOFF_MAX_SECONDS", "0.1", "must be at least 1, got 0.1"),
        ("METRICS_PORT", "8081", "must be different from KVASIR_OPERATOR_HEALTH_PORT (8081), got 8081"),
    ],
)
def test_a_bad_value_is_told_by_variable_bound_and_value(name: str, value: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment({f"KVASIR_OPERATOR_{name}": value})
    assert refusal.value.problems == [f"KVASIR_OPERATOR_{name}: {complaint}"]


def test_file_sources_need_a_folder() -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment({"KVASIR_OPERATOR_ALLOW_FILE_SOURCES": "true"})
    assert str(refusal.value) == (
        "KVASIR_OPERATOR_FILE_SOURCE_ROOTS: must name at least one folder when KVASIR_OPERATOR_ALLOW_FILE_SOURCES is on"
    )


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment({"KVASIR_OPERATOR_HEALTH_PORT": "0", "KVASIR_OPERATOR_LOG_LEVEL": "loud"})
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [
        "KVASIR_OPERATOR_HEALTH_PORT",
        "KVASIR_OPERATOR_LOG_LEVEL",
    ]


def test_variables_that_no_setting_bears_are_found() -> None:
    environment = {"KVASIR_OPERATOR_RESYNC": "5", env_name("resync_seconds"): "5", "HOME": "/"}
    assert unknown_variables(environment) == ["KVASIR_OPERATOR_RESYNC"]


def test_every_setting_gives_its_reason() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert not field.is_required(), name
