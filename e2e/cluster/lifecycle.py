"""`up` and `down` of a cluster that is made here."""

import fcntl
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import bootstrap, build, images, leftovers, network, node, packages, processes, scratch
from e2e.cluster.api import Api, wait_until
from e2e.cluster.errors import ClusterError
from e2e.cluster.flags import Spec, Tools
from e2e.cluster.layout import Layout
from e2e.cluster.machine import node_facts
from e2e.cluster.progress import Progress
from e2e.cluster.record import Record, read_record, reports, write_record
from e2e.cluster.versions import KubeVersion, binaries_version

PATIENCE = 30.0  # seconds for a cluster that is up to answer
START_TIMEOUT = 120.0  # seconds for the API server to become ready


@contextmanager
def locked(layout: Layout, progress: Progress) -> Iterator[None]:
    """One `up` or `down` of a cluster at a time; the lock goes with the process that holds it."""
    layout.cache.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another `up` or `down` of this cluster is under way: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def up(layout: Layout, binaries: Path | None, progress: Progress) -> None:
    """Makes the cluster, or does nothing when it is there already in the wanted version.

    Raises:
        ClusterError: with what failed, what the component's log says last, and what to do.
    """
    packages.check_machine()
    with locked(layout, progress):
        tools = _prepare(layout, binaries, progress)
        folder = (binaries or build.built_folder(layout.cache)).resolve()
        record = read_record(layout)
        if record and _is_up(layout, record, folder):
            progress.say(f"already up: Kubernetes {record.version}, kubeconfig {layout.kubeconfig}")
            return
        version = binaries_version(folder)
        if leftovers.leftovers(layout):
            with progress.step(_cleaning(record, folder)):
                leftovers.clean(layout)
        _make(layout, Programs(version, folder, tools), progress)
        progress.say(f"up after {progress.elapsed}: export KUBECONFIG={layout.kubeconfig}")


def _prepare(layout: Layout, binaries: Path | None, progress: Progress) -> Tools:
    """Everything that is fetched or built once."""
    if needed := packages.missing(packages.RUN_PROGRAMS, packages.RUN_LIBRARIES):
        with progress.step(f"install {', '.join(needed)}"):
            packages.install(needed)
    tools = packages.unpacked_tools(layout.cache)
    if tools is None:
        with progress.step(f"unpack {', '.join(packages.UNPACKED)}"):
            tools = packages.unpack_tools(layout.cache)
    if binaries is None and not build.is_built(layout.cache):
        build.build(layout.cache, progress)
    scratch.pause_archive(layout.cache)
    return tools


def _is_up(layout: Layout, record: Record, binaries: Path) -> bool:
    """Whether the wanted cluster is there; a busy one gets half a minute to answer before it counts as broken."""
    if not record.complete or record.binaries != str(binaries) or not layout.kubeconfig.exists():
        return False
    if "supervisor" not in processes.components(processes.cluster_processes(layout.state)):
        return False
    try:
        with Api.from_kubeconfig(layout.kubeconfig) as api:
            bootstrap.wait_for_api(api, PATIENCE)
            wait_until("the node", lambda: bootstrap.node_usable(api.find(_node_path(layout))), PATIENCE)
    except ClusterError:
        return False
    return True


def _node_path(layout: Layout) -> str:
    return f"/api/v1/nodes/{layout.node_name}"


def _cleaning(record: Record | None, binaries: Path) -> str:
    if record and record.complete and record.binaries != str(binaries):
        return f"take down Kubernetes {record.version}, which ran from {record.binaries}"
    return "clean what an earlier cluster left"


@dataclass(frozen=True)
class Programs:
    """What is to be run."""

    version: KubeVersion
    binaries: Path
    tools: Tools


def _make(layout: Layout, programs: Programs, progress: Progress) -> None:
    try:
        spec = _start(layout, programs, progress)
        with progress.step(f"wait for Kubernetes {spec.version}"):
            _wait_for_control_plane(spec)
        with progress.step("wait for the node"):
            _wait_until_usable(spec)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{failing_logs(layout)}") from error
    shutil.copyfile(layout.config / "admin.kubeconfig", layout.kubeconfig)
    layout.kubeconfig.chmod(0o600)
    write_record(layout, _record(spec, complete=True))


def _start(layout: Layout, programs: Programs, progress: Progress) -> Spec:
    with progress.step("write certificates and configuration, start the node"), network.choosing():
        addresses, facts = network.free_slot(), node_facts(layout.cache)
        spec = Spec(layout, addresses, programs.version, programs.binaries, programs.tools, facts)
        write_record(layout, _record(spec, complete=False))
        node.write_files(spec)
        node.start(spec, node.write_plan(spec))
    return spec


def _record(spec: Spec, *, complete: bool) -> Record:
    return Record(spec.addresses.slot, str(spec.version), str(spec.binaries), complete)


def _wait_for_control_plane(spec: Spec) -> None:
    with ThreadPoolExecutor(1) as background, _admin(spec) as api:
        pause = background.submit(_load_pause, spec)
        wait_until("the API server", lambda: api.text("/readyz") == "ok" or _refuse_dying(spec.layout), START_TIMEOUT)
        bootstrap.apply_bootstrap(api, spec)
        pause.result()


def _refuse_dying(layout: Layout) -> bool:
    """False as long as there is hope.

    Raises:
        ClusterError: a component has ended three times already: waiting longer is in vain.
    """
    dying = [f"{name} (status {state.last_status})" for name, state in reports(layout).items() if state.ends >= 3]
    if dying:
        raise ClusterError(f"does not stay up: {', '.join(dying)}")
    return False


def _load_pause(spec: Spec) -> None:
    node.wait_for_containerd(spec)
    images.Containerd(spec.tools.ctr, spec.layout.containerd_socket).load(scratch.pause_archive(spec.layout.cache))


def _wait_until_usable(spec: Spec) -> None:
    with _admin(spec) as api:
        bootstrap.wait_for_node(api, spec)
        bootstrap.wait_for_service_accounts(api)


def _admin(spec: Spec) -> Api:
    return Api.from_kubeconfig(spec.layout.config / "admin.kubeconfig")


def failing_logs(layout: Layout, lines: int = 8) -> str:
    """The last lines of the logs of components that are not running (of all, when all are running)."""
    running = processes.components(processes.cluster_processes(layout.state))
    logs = sorted(layout.logs.glob("*.log")) if layout.logs.exists() else []
    chosen = [log for log in logs if log.stem not in running] or logs
    tails = [f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) for log in chosen]
    return "\n".join(tails)


def down(layout: Layout, progress: Progress) -> None:
    """Takes the cluster down and verifies that nothing is left.

    Raises:
        ClusterError: something is left; lists it.
    """
    packages.check_machine()
    with locked(layout, progress):
        if not leftovers.leftovers(layout):
            progress.say("no cluster here: nothing to do")
            return
        with progress.step("take the cluster down") as step:
            step.note = f"{leftovers.clean(layout)} processes ended"
        if remaining := leftovers.leftovers(layout):
            raise ClusterError("left behind:\n  " + "\n  ".join(remaining))
        progress.say("nothing is left of the cluster; built programs stay in the cache")
