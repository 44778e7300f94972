"""How images are built: command lines, the machine's pip settings, and a base that remembers no machine."""

import doctest
import re
from pathlib import Path

import pytest

from e2e.cluster.errors import ClusterError, UsageError
from e2e.images import base, builders, pip_settings
from e2e.images.__main__ import parser
from e2e.images.build import ROOT, build_arguments, image_name
from e2e.images.check import Check, run_check, runc_config

BUILD = builders.Build(
    image="docker.io/kvasir/x:dev",
    dockerfile=Path("/r/x/Dockerfile"),
    context=Path("/r"),
    arguments={"TORCH_VERSION": "2.13.0", "ACCELERATOR": "cpu"},
    volumes=("/tmp/pip:/mnt:ro", "/wheels:/mnt/0:ro"),
)
COMMON = "--network host --build-arg ACCELERATOR=cpu --build-arg TORCH_VERSION=2.13.0"
VOLUMES = "--volume /tmp/pip:/mnt:ro --volume /wheels:/mnt/0:ro"
TARGET = "--file /r/x/Dockerfile --tag docker.io/kvasir/x:dev /r"


@pytest.mark.parametrize(
    ("builder", "command"),
    [
        ("docker", f"docker build {COMMON} {TARGET}"),
        ("podman", f"podman build --layers --pull=missing {COMMON} {VOLUMES} {TARGET}"),
        ("buildah", f"buildah build --layers --pull=missing {COMMON} {VOLUMES} {TARGET}"),
    ],
)
def test_the_command_line_of_each_builder(builder: builders.Name, command: str) -> None:
    assert " ".join(builders.build_command(builder, BUILD)) == command


def test_a_client_without_its_daemon_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "available", lambda name: name == "buildah")
    assert builders.choose("auto") == "buildah"
    with pytest.raises(UsageError, match=r"docker does not answer \(`docker info` fails\)"):
        builders.choose("docker")


def test_without_a_builder_and_without_root_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "available", lambda name: False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="install one of them, or run this as root on Debian"):
        builders.choose("auto")


def test_examples_of_the_pip_settings_hold() -> None:
    assert doctest.testmod(pip_settings).failed == 0


def test_local_places_of_pip_are_mounted_and_rewritten() -> None:
    listing = """\
global.cert='/etc/ca.pem'
global.extra-index-url='file:///pypi/simple https://mirror/simple'
global.find-links='/wheels'
:env:.disable-pip-version-check='1'
"""
    settings = pip_settings.settings_for_build(pip_settings.effective(listing))
    assert settings.config.splitlines() == [
        "[global]",
        "cert = /mnt/ca.pem",
        "extra-index-url = file:///mnt/0/simple https://mirror/simple",
        "find-links = /mnt/1",
    ]
    assert settings.authorities == Path("/etc/ca.pem")
    assert settings.folders == (Path("/pypi"), Path("/wheels"))


def test_mount_points_exist_before_they_are_mounted_on(tmp_path: Path) -> None:
    """A mount point that a builder has to make would stay behind in the image."""
    (tmp_path / "ca.pem").write_text("certificate")
    settings = pip_settings.PipSettings("[global]\n", tmp_path / "ca.pem", (tmp_path / "a", tmp_path / "b"))
    with pip_settings.mounts(settings) as volumes:
        root = Path(volumes[0].partition(":")[0])
        assert [volume.partition(":")[2] for volume in volumes] == ["/mnt:ro", "/mnt/0:ro", "/mnt/1:ro"]
        assert sorted(path.name for path in root.iterdir()) == ["0", "1", "ca.pem", "pip.conf"]
    assert not root.exists()


def test_torch_comes_from_its_own_index_unless_it_is_at_hand() -> None:
    assert build_arguments("cpu", "2.13.0", local_torch=False) == {"ACCELERATOR": "cpu", "TORCH_VERSION": "2.13.0"}
    assert build_arguments("cpu", "2.13.0", local_torch=True)["TORCH_INDEX_URL"] == ""


def test_the_base_keeps_nothing_of_the_machine(tmp_path: Path) -> None:
    mine = ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list", "var/lib/apt/lists/mirror_Packages")
    unread = ("usr/share/doc/libc6/changelog", "usr/share/locale/de/x.mo", "var/cache/apt/archives/x.deb")
    kept = ("usr/share/doc/libc6/copyright", "usr/bin/bash")
    for name in (*mine, *unread, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("http://mirror.internal/debian")
    base.slim(tmp_path)
    assert [name for name in (*mine, *unread) if (tmp_path / name).exists()] == []
    assert all((tmp_path / name).exists() for name in kept)
    sources = (tmp_path / "etc/apt/sources.list.d/debian.sources").read_text()
    assert set(re.findall(r"URIs: (\S+)", sources)) == {
        "http://deb.debian.org/debian",
        "http://deb.debian.org/debian-security",
    }


@pytest.mark.parametrize(
    ("uris", "mirror"),
    [
        (["http://mirror/debian/"], "http://mirror/debian/"),
        (["cdrom:[x]/", "https://m/debian"], "https://m/debian"),
        ([], "http://deb.debian.org/debian"),
    ],
)
def test_the_base_is_made_from_apts_own_mirror(uris: list[str], mirror: str) -> None:
    assert base.machine_mirror(uris) == mirror


def test_checks_run_as_strictly_as_pods() -> None:
    config = runc_config(Path("/root"), {"User": "65532:65532", "Env": ["PATH=/bin"]}, ["true"])
    assert config["root"] == {"path": "/root", "readonly": True}
    process = config["process"]
    assert isinstance(process, dict)
    assert process["user"] == {"uid": 65532, "gid": 65532}
    assert process["capabilities"] == {}
    assert process["noNewPrivileges"] is True


@pytest.mark.parametrize(("program", "succeeds"), [("true", True), ("false", False)])
def test_a_check_that_goes_otherwise_is_an_error(program: str, succeeds: bool) -> None:
    run_check(Check("as promised", (program,), succeeds), [program])
    with pytest.raises(ClusterError, match=rf"{program} ended with \d, was to"):
        run_check(Check("not as promised", (program,), not succeeds), [program])


@pytest.mark.parametrize("part", ["operator", "runtime"])
def test_dockerfiles_promise_a_stranger_nothing_of_this_machine(part: str) -> None:
    text = (ROOT / part / "Dockerfile").read_text()
    assert text.rstrip().rpartition("FROM ")[2].count("USER 65532:65532") == 1
    assert set(re.findall(r"https?://[^\s/,]+", text)) <= {"https://…", "https://download.pytorch.org"}


def test_both_images_grow_from_the_same_stages() -> None:
    """Equal instructions are equal layers, built and stored once."""
    stages = [
        re.search(
            r"^FROM \$\{BASE_IMAGE\}.*?(?=^# Only the list)",
            (ROOT / part / "Dockerfile").read_text(),
            re.DOTALL | re.MULTILINE,
        )
        for part in ("operator", "runtime")
    ]
    assert stages[0] is not None
    assert stages[1] is not None
    assert stages[0][0] == stages[1][0]


def test_the_command_line_reads_well() -> None:
    assert parser().parse_args(["build", "runtime", "--tool", "buildah"]).part == ["runtime"]
    assert image_name("operator") == "docker.io/kvasir/operator:dev"
