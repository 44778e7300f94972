"""For all unit tests: what must be settled before anything is imported, and how generated examples are judged.

They are judged by what they show, never by how long a busy machine takes.
"""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it once, when it is first imported

# What is not named here stays as it was: in CI, hypothesis' own profile makes the examples the same in each run.
settings.register_profile("kvasir", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvasir")
