"""Starts the engine's process and knows what became of it. Needs neither asyncio nor the web stack: it runs first."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.contract.quantities import format_bytes
from kvasir_runtime.engine.engine_process import EngineSpec
from kvasir_runtime.engine.transport import FrontEndLink
from kvasir_runtime.worker.host import memory_limit

STOP_GRACE_S: Final = 2.0
_OOM_COUNTERS: Final = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


@dataclass
class EngineProcess:
    """A started engine. `oom_kills` is what the cgroup had counted before it started; None where it does not say."""

    process: subprocess.Popen[bytes]
    link: FrontEndLink
    oom_kills: int | None

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """End it, also when it is stopped or stuck. Harmless when it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def explain_exit(self, status: int, *, loading: bool) -> FailureReport:
        """What to tell people of an engine that ended without a word. `status` as in `Popen.returncode`."""
        killed_for_memory = self.oom_kills is not None and (count_oom_kills() or 0) > self.oom_kills
        return explain_exit(status, loading=loading, killed_for_memory=killed_for_memory)


def launch_engine(spec: EngineSpec) -> EngineProcess:
    """Start the engine's process; returns at once, the model loads in the background."""
    link = FrontEndLink(spec.socket_folder)
    oom_kills = count_oom_kills()
    # -P: what lies in the working directory must not shadow what the engine imports.
    command = [sys.executable, "-P", "-m", "kvasir_runtime.engine.engine_process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(spec.to_bytes() + b"\n")
    process.stdin.flush()
    return EngineProcess(process, link, oom_kills)


def explain_exit(status: int, *, loading: bool, killed_for_memory: bool) -> FailureReport:
    """Name the cause of a silent end; memory is blamed only where the kernel says so."""
    when = "while it loaded the model" if loading else "while it served"
    detail: dict[str, Any] = {"exit_status": status}
    if killed_for_memory:
        cause = Cause.OUT_OF_MEMORY_WEIGHTS if loading else Cause.OUT_OF_MEMORY_KV_CACHE
        remedy = "raise the memory limit, or lower --kv-cache-memory, --max-model-len or --max-num-batched-tokens"
        limit = memory_limit().limit
        message = f"the kernel killed the engine {when}: it needed more memory than its limit of {format_bytes(limit)}"
        return FailureReport(cause, message, remedy, detail | {"memory_limit": limit})
    how = f"was killed by {_signal_name(-status)}" if status < 0 else f"exited with status {status}"
    return FailureReport(
        Cause.ENGINE_DIED, f"the engine process {how} {when}", "look for its last lines in the log", detail
    )


def _signal_name(number: int) -> str:
    known = {member.value: member.name for member in signal.Signals}
    return known.get(number, f"signal {number}")


def count_oom_kills() -> int | None:
    """How often the kernel killed in this cgroup for memory; None where neither cgroup version tells."""
    for path in _OOM_COUNTERS:
        try:
            lines = Path(path).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if counts:
            return counts[0]
    return None
