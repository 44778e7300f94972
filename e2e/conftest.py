"""A real cluster with Kvasir installed; a namespace for each test, and what it held when a test fails."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.support import operator, services
from e2e.support.environment import Environment, ensure_cluster, ensure_images
from e2e.support.kubectl import Kubectl, KubectlError
from e2e.support.reading import reading


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker("e2e")
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember on the item whether its body failed, for the diagnostics of the namespace fixture."""
    report = yield
    if report.when == "call":  # type: ignore[attr-defined]
        item.stash[FAILED] = report.failed  # type: ignore[attr-defined]
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def environment() -> Iterator[Environment]:
    """The cluster, with images of this checkout on its node."""
    made = ensure_cluster()
    ensure_images()
    operator.reinstall(made.kubectl)
    with reading(made.kubectl) as kubectl:
        yield Environment(kubectl, made.own)


@pytest.fixture(scope="session")
def model_uri(environment: Environment) -> str:
    """Address of the committed model, reachable for pods."""
    if not environment.own:
        pytest.skip("file:// models need the node to be this machine")
    return services.put_model_on_node()


@pytest.fixture
def kubectl(environment: Environment, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """Kubectl in a namespace of this test's own."""
    with namespace(environment.kubectl, request.node.name) as scoped:
        yield scoped
        if request.node.stash.get(FAILED, True):
            print(diagnostics(scoped))


@pytest.fixture(scope="module")
def space_of_module(environment: Environment, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """Kubectl in a namespace that the tests of a module share."""
    with namespace(environment.kubectl, request.node.path.stem) as scoped:
        yield scoped


@pytest.fixture
def shared(space_of_module: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """The namespace of the module, for tests that leave it so that others can go on with what is in it."""
    yield space_of_module
    if request.node.stash.get(FAILED, True):
        print(diagnostics(space_of_module))


@contextmanager
def namespace(kubectl: Kubectl, test: str) -> Iterator[Kubectl]:
    """A namespace named after a test; it goes while the next test begins, and its pods with it."""
    slug = re.sub(r"[^a-z0-9]+", "-", test.lower().removeprefix("test_"))[:40].strip("-")
    name = f"{slug}-{uuid.uuid4().hex[:5]}"
    kubectl.run("create", "namespace", name)
    try:
        yield kubectl.within(name)
    finally:
        kubectl.run("delete", "namespace", name, "--wait=false")


def diagnostics(kubectl: Kubectl) -> str:
    """What a person would look at first: objects, events, the pods' logs and the operator's."""
    parts = [
        _shown(kubectl, "get", "isvc,pods,services,controllerrevisions,poddisruptionbudgets", "-o", "wide"),
        _shown(kubectl, "get", "isvc", "-o", "yaml"),
        _shown(kubectl, "get", "events", "--sort-by=.lastTimestamp"),
        _shown(kubectl, "describe", "pods"),
    ]
    parts += [
        _shown(kubectl, "logs", pod["metadata"]["name"], "--all-containers", "--prefix", "--tail=60")
        for pod in kubectl.list("pods")
    ]
    system = kubectl.within(operator.NAMESPACE)
    parts.append(_shown(system, "logs", f"deployment/{operator.DEPLOYMENT}", "--tail=150"))
    return "\n".join(parts)


def _shown(kubectl: Kubectl, *args: str) -> str:
    try:
        return f"--- kubectl {' '.join(args)}\n{kubectl.run(*args)}"
    except KubectlError as error:
        return f"--- {error}"
