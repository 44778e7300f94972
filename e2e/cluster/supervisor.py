"""The node's first process: starts the components, starts them again when they end, reaps orphans.

Runs as process 1 of the node's own PID namespace, so its end is the end of every process of the cluster. It is run as a
plain file by any Python and imports nothing but the standard library. The plan (JSON) holds a list of components:

    {"name", "argv", "env", "log", "network": "node"|"host", "gate": "https://host:port/path" or absent}

The word HOST_NETWORK in an argv becomes the number of an open descriptor of the machine's network namespace.

A component with a gate is first started when the gate answers 200. `report` is rewritten whenever one starts or ends.
"""

import ctypes
import http.client
import json
import os
import signal
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POLL = 0.1  # seconds between looks at gates and ended children
BACKOFF = (0.2, 1.0, 3.0, 10.0)  # seconds before a component is started again, by how often it ended so far
# Where /etc/resolv.conf may point.
RESOLVER_FOLDERS = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")
LASTED = 60.0  # seconds after which a component counts as healthy again


@dataclass
class Component:
    """One supervised program; `due` is when it may start next (monotonic seconds)."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log: str
    network: str = "node"
    gate: str | None = None
    pid: int = 0
    due: float = 0.0
    started: float = 0.0
    ends: int = 0
    streak: int = 0  # ends since it last ran for LASTED
    last_status: int = 0


def mount_node(plan: dict[str, Any]) -> None:
    """Gives the node its own /proc, /run and system folders; the machine's mounts stay as they are."""
    _mount("proc", "/proc", "proc")
    _pin_kernel_settings(plan["scratch"])
    _cover_run([plan["run"], *(folder for folder in RESOLVER_FOLDERS if Path(folder).is_dir())])
    for source, target in plan["folders"]:
        _mount(source, target, flags=MS_BIND)
    _mount("none", "/", flags=MS_SHARED | MS_REC)


def _cover_run(kept: list[str]) -> None:
    """An empty /run, but for the folders that the machine and the node share."""
    held = {folder: os.open(folder, os.O_PATH) for folder in kept}  # reached by descriptor once /run is covered
    _mount("tmpfs", "/run", "tmpfs")
    for folder, descriptor in held.items():
        Path(folder).mkdir(parents=True)
        _mount(f"/proc/self/fd/{descriptor}", folder, flags=MS_BIND)
        os.close(descriptor)


def _pin_kernel_settings(scratch: str) -> None:
    """The kubelet sets these if they differ. They belong to the machine: it is shown the wanted values instead."""
    wanted = {
        "vm/overcommit_memory": "1",
        "vm/panic_on_oom": "0",
        "kernel/panic": "10",
        "kernel/panic_on_oops": "1",
        "kernel/keys/root_maxkeys": "1000000",
        "kernel/keys/root_maxbytes": "25000000",
    }
    for name, value in wanted.items():
        pinned = Path(scratch) / name.replace("/", ".")
        pinned.write_text(value + "\n")
        if Path(f"/proc/sys/{name}").exists():
            _mount(str(pinned), f"/proc/sys/{name}", flags=MS_BIND)


MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str = "none", *, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def _join_network(namespace: int) -> None:
    if _libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot join the machine's network")


def gate_open(gate: str, authority: str) -> bool:
    """Whether what a component waits for answers now."""
    try:
        parts = urlsplit(gate)
        context = ssl.create_default_context(cafile=authority)
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=2, context=context)
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


class Supervisor:
    """The loop; `report` gets the state of every component as JSON."""

    def __init__(self, plan: dict[str, Any], host_network: int) -> None:
        self.components = [Component(**component) for component in plan["components"]]
        self.authority: str = plan["authority"]
        self.report = Path(plan["report"])
        self.host_network = host_network
        self.open_gates: set[str] = set()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the kernel ends all others with process 1
        while True:
            changed = self._start_due() | self._reap()
            if changed:
                self._write_report()
            time.sleep(POLL)

    def _start_due(self) -> bool:
        now = time.monotonic()
        started = False
        self._look_at_gates()
        for component in self.components:
            shut = component.gate is not None and component.gate not in self.open_gates
            if component.pid or component.due > now or shut:
                continue
            component.pid, component.started = self._spawn(component), now
            started = True
        return started

    def _look_at_gates(self) -> None:
        """Asks each gate once, not once for each component behind it; a gate that was open stays so."""
        gates = {component.gate for component in self.components if component.gate} - self.open_gates
        self.open_gates |= {gate for gate in gates if gate_open(gate, self.authority)}

    def _spawn(self, component: Component) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setsid()
            log = os.open(component.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            if component.network == "host":
                _join_network(self.host_network)
            elif "HOST_NETWORK" in component.argv:
                os.set_inheritable(self.host_network, True)  # noqa: FBT003
            argv = [str(self.host_network) if word == "HOST_NETWORK" else word for word in component.argv]
            os.execve(argv[0], argv, component.env)
        except OSError as error:
            os.write(2, f"cannot start {component.argv[0]}: {error}\n".encode())
        os._exit(127)

    def _reap(self) -> bool:
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return changed
            if pid == 0:
                return changed
            changed |= self._ended(pid, status, time.monotonic())

    def _ended(self, pid: int, status: int, now: float) -> bool:
        """Notes the end of a component; False for an orphan that was merely reaped."""
        for component in self.components:
            if component.pid == pid:
                component.streak = 1 if now - component.started > LASTED else component.streak + 1
                component.due = now + BACKOFF[min(component.streak, len(BACKOFF)) - 1]
                component.pid, component.ends = 0, component.ends + 1
                component.last_status = os.waitstatus_to_exitcode(status)
                return True
        return False

    def _write_report(self) -> None:
        state = {c.name: {"running": c.pid > 0, "ends": c.ends, "last_status": c.last_status} for c in self.components}
        draft = self.report.with_suffix(".new")
        draft.write_text(json.dumps(state))
        draft.replace(self.report)


def main() -> None:
    """`supervisor.py PLAN HOST_NETWORK_FD`."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    host_network = int(sys.argv[2])
    os.set_inheritable(host_network, False)  # noqa: FBT003
    if not os.read(0, 1):  # `up` says here that the network is in place, or has ended without it
        sys.exit("the network was not put in place")
    mount_node(plan)
    Supervisor(plan, host_network).run()


if __name__ == "__main__":
    main()
