"""For all unit tests: generated examples are judged by what they show, never by how long a busy machine takes."""

from hypothesis import HealthCheck, settings

# What is not named here stays as it was: in CI, hypothesis' own profile makes the examples the same in each run.
settings.register_profile("kvasir", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvasir")
