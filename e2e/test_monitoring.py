"""Alerts and dashboard with Debian's promtool, which the unit tests use only where it is."""

import subprocess
import sys

from e2e.cluster import packages
from e2e.support.environment import ROOT
from e2e.support.prometheus import CACHE, PACKAGES, PROGRAM

TESTS = "tests/kvasir_operator/monitoring"


def test_promtool_takes_the_alerts() -> None:
    """None of the tests of the monitoring component is left out once the package is unpacked."""
    if packages.unpacked(CACHE, PACKAGES) is None:
        packages.unpack(CACHE, PACKAGES, (PROGRAM,))
    command = [sys.executable, "-m", "pytest", "-q", "-rs", TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
