"""`up` and `down`: harmless twice, and clean after a death at any moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import cgroups, processes
from e2e.cluster.conftest import program
from e2e.cluster.layout import NODE_FOLDERS, Layout, layout_for
from e2e.cluster.status import component_states
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for

NAME = "selftest-life"  # not the cluster of the other tests: this one comes and goes


@pytest.fixture(scope="module")
def life(own_clusters: None) -> Iterator[Layout]:
    """The cluster that comes and goes; it is gone in the end."""
    yield layout_for(NAME)
    run("down")


def run(*words: str, status: int = 0) -> str:
    """What a verb on that cluster says."""
    done = program(*words, name=NAME, status=status)
    return done.stdout + done.stderr


def machine_state() -> dict[str, object]:
    """What a cluster could leave behind anywhere, as seen without the cluster program's own eyes."""
    return {
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "rules": subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.count(NAME),
        "mounts": NAME in Path("/proc/self/mountinfo").read_text(),
        "folders": [str(path) for path in Path("/run").glob("kvasir-cluster-*") if NAME in path.name],
        "cgroups": [str(path) for path in cgroups.ROOT.glob(f"**/kvasir-cluster-{NAME}")],
        "system": [name for name in (*NODE_FOLDERS, "/opt/cni", "/opt/containerd") if Path(name).exists()],
    }


@pytest.fixture
def absent(life: Layout) -> Layout:
    """No cluster, whatever ran before."""
    run("down")
    return life


@pytest.fixture
def present(life: Layout) -> Kubectl:
    run("up")
    return Kubectl(life.kubeconfig)


def test_down_leaves_the_machine_as_it_was(absent: Layout) -> None:
    """After `up` and `down`, nothing is there that was not before; a second `down` has nothing to do."""
    before = machine_state()
    run("up")
    assert machine_state() != before
    assert Kubectl(absent.kubeconfig).run("get", "nodes").count(" Ready ") == 1
    run("down")
    assert machine_state() == before
    assert not absent.state.exists()
    assert run("leftovers") == "nothing is left\n"
    assert "nothing to do" in run("down")


@pytest.mark.parametrize("after", [0.7, 4.0])
def test_up_cleans_what_a_killed_up_has_left(absent: Layout, after: float) -> None:
    """Killed with SIGKILL after so many seconds, `up` works when it is run again."""
    command = [sys.executable, "-m", "e2e.cluster", "--name", NAME, "up"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        time.sleep(after)
        killed.send_signal(signal.SIGKILL)
    run("up")
    run("status")


def test_up_twice_is_harmless(present: Kubectl) -> None:
    """The second `up` changes nothing and says so."""
    uid = present.run("get", "namespace", "default", "-o", "jsonpath={.metadata.uid}")
    assert "already up" in run("up")
    assert present.run("get", "namespace", "default", "-o", "jsonpath={.metadata.uid}") == uid


def test_components_that_die_are_started_again(present: Kubectl, life: Layout) -> None:
    """Kill some of the long-running components; the cluster heals without `up`."""
    killed = ("kube-scheduler", "dns", "kubelet", "kube-apiserver")
    for name in killed:
        os.kill(processes.components(processes.cluster_processes(life.state))[name].pid, signal.SIGKILL)

    def healed() -> bool:
        states = {state.name: state for state in component_states(life)}
        return all(state.pid for state in states.values()) and all(states[name].ends for name in killed)

    wait_for("all components to run again", healed, timeout=60)
    assert "already up" in run("up")


def test_the_death_of_the_supervisor_ends_everything(present: Kubectl, life: Layout) -> None:
    """No process survives the node's first one; `up` then makes a new cluster."""
    supervisor = processes.components(processes.cluster_processes(life.state))["supervisor"]
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_for("all to end", lambda: not processes.cluster_processes(life.state), timeout=20)
    assert "not usable" in run("status", status=1)
    run("up")
    run("status")
