"""Programs from Debian's packages: installed where that starts nothing, unpacked beside the system where it would."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster import shell
from e2e.cluster.errors import ClusterError, UsageError
from e2e.cluster.flags import Tools

# Program -> package. Installed with apt when the program is missing; none of these starts a daemon by itself.
RUN_PROGRAMS = {
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ebtables": "ebtables",
    "ethtool": "ethtool",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "kubectl": "kubernetes-client",
    "modprobe": "kmod",
    "gcc": "gcc",
}
BUILD_PROGRAMS = {"go": "golang-go", "rsync": "rsync", "make": "make", "dpkg-source": "dpkg-dev", "gcc": "gcc"}

# Unpacked, not installed: their packages bring services that would be enabled, and they conflict with Docker's own.
RUN_LIBRARIES = {"libseccomp.so.2": "libseccomp2"}  # what they need beyond the C library
UNPACKED = ("etcd-server", "containerd", "runc", "containernetworking-plugins")

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# Written by kvasir's test cluster while it installs packages: start no daemon.\nexit 101\n"
APT_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def check_machine() -> None:
    """Refuses machines on which a cluster cannot be made, and says what to do instead.

    Raises:
        UsageError: not root, or not Debian.
    """
    remedy = "or name a cluster of your own: KUBECONFIG=... KVASIR_E2E_USE_CONTEXT=<context>"
    if os.geteuid() != 0:
        raise UsageError(f"making a cluster needs root (namespaces, mounts): run as root, {remedy}")
    release = Path("/etc/os-release")
    if not release.exists() or "ID=debian" not in release.read_text().splitlines():
        raise UsageError(f"a cluster can be made on Debian only (its packages are used): use Debian 12, {remedy}")


def missing(programs: dict[str, str], libraries: dict[str, str] | None = None) -> list[str]:
    """The packages of those programs that are not on PATH, and of those libraries that are not in the usual folder."""
    packages = {package for program, package in programs.items() if not shutil.which(program)}
    for library, package in (libraries or {}).items():
        if not any(Path("/usr/lib").glob(f"*/{library}")):
            packages.add(package)
    return sorted(packages)


def install(packages: list[str]) -> None:
    """Installs Debian packages without starting anything and without removing anything.

    Raises:
        ClusterError: apt failed; shows its own words.
    """
    apt = ["apt-get", "-q", "-y", "--no-remove", "-o", "DPkg::Lock::Timeout=300"]
    environment = dict(os.environ) | APT_ENVIRONMENT
    with no_daemons():
        try:
            shell.run([*apt, "install", "--no-install-recommends", *packages], env=environment, timeout=1200)
        except ClusterError:  # mostly: the machine's package lists are old
            shell.run([*apt, "update"], env=environment)
            shell.run([*apt, "install", "--no-install-recommends", *packages], env=environment, timeout=1200)


@contextmanager
def no_daemons() -> Iterator[None]:
    """While inside, packages that are being installed do not start services. An administrator's own policy is kept."""
    if POLICY.exists() and not policy_left():
        yield
        return
    POLICY.write_text(POLICY_TEXT)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        remove_policy()


def policy_left() -> bool:
    """Whether our own policy is in force: outside an installation, what a killed one has left."""
    return POLICY.exists() and POLICY.read_text() == POLICY_TEXT


def remove_policy() -> None:
    if policy_left():
        POLICY.unlink()


def unpacked_tools(cache: Path) -> Tools | None:
    """The programs of the UNPACKED packages, if they are in the cache."""
    root = unpacked(cache, UNPACKED)
    return None if root is None else _tools(root)


def unpack_tools(cache: Path) -> Tools:
    """Fetches the UNPACKED packages with apt and unpacks them into the cache.

    Raises:
        ClusterError: apt or dpkg failed, or a program needs a library that the machine lacks.
    """
    return _tools(unpack(cache, UNPACKED, ("usr/bin/etcd", "usr/bin/containerd", "usr/sbin/runc")))


def unpacked(cache: Path, names: tuple[str, ...]) -> Path | None:
    """The folder that the packages were unpacked into, if they are in the cache."""
    root = _unpacked_root(cache, names)
    return root if (root / ".complete").exists() else None


def unpack(cache: Path, names: tuple[str, ...], programs: tuple[str, ...]) -> Path:
    """Fetches packages with apt and unpacks them into a folder of the cache, which is returned.

    Args:
        cache: where all that is fetched is kept.
        names: the packages.
        programs: paths within them that must run here.

    Raises:
        ClusterError: apt or dpkg failed, or a program needs a library that the machine lacks.
    """
    root = _unpacked_root(cache, names)
    shutil.rmtree(root, ignore_errors=True)
    downloads = root / "packages"
    downloads.mkdir(parents=True)
    try:
        shell.run(["apt-get", "-q", "download", *names], cwd=downloads)
    except ClusterError:  # mostly: the machine's package lists are old
        shell.run(["apt-get", "-q", "update"])
        shell.run(["apt-get", "-q", "download", *names], cwd=downloads)
    for package in downloads.glob("*.deb"):
        shell.run(["dpkg-deb", "--extract", package, root])
    for program in programs:
        shell.run([root / program, "--version"])
    shutil.rmtree(downloads)
    (root / ".complete").touch()
    return root


def _unpacked_root(cache: Path, names: tuple[str, ...]) -> Path:
    return cache / "tools" / f"unpacked-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"


def _tools(root: Path) -> Tools:
    return Tools(
        etcd=root / "usr/bin/etcd",
        containerd=root / "usr/bin/containerd",
        ctr=root / "usr/bin/ctr",
        runc=root / "usr/sbin/runc",
        cni=root / "usr/lib/cni",
    )
