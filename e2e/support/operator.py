"""Installing and removing the operator, as a user would."""

from e2e.support.environment import ROOT
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

NAMESPACE = "kvasir-system"
DEPLOYMENT = "kvasir-operator"
OVERLAY = ROOT / "manifests" / "overlays" / "local"


def install(kubectl: Kubectl) -> None:
    """Apply the local overlay and wait until the operator leads."""
    kubectl.run("apply", "-k", str(OVERLAY))
    kubectl.within(NAMESPACE).run("rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=240s", timeout=250)


def reinstall(kubectl: Kubectl) -> None:
    """Apply the overlay and make the pods anew, so that they run the image that was loaded last.

    Those that are there may be of an image that cannot start: nobody waits for them.
    """
    kubectl.run("apply", "-k", str(OVERLAY))
    kubectl.within(NAMESPACE).run("rollout", "restart", f"deployment/{DEPLOYMENT}")
    kubectl.within(NAMESPACE).run("rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=240s", timeout=250)


def uninstall(kubectl: Kubectl) -> None:
    kubectl.run("delete", "-k", str(OVERLAY), "--ignore-not-found", "--timeout=240s", timeout=250)


def pods(kubectl: Kubectl) -> list[Object]:
    return kubectl.within(NAMESPACE).list("pods", "app.kubernetes.io/name=kvasir-operator")


def scale(kubectl: Kubectl, replicas: int) -> None:
    """Run so many operators; with 0, wait until none is left."""
    kubectl.within(NAMESPACE).run("scale", f"deployment/{DEPLOYMENT}", f"--replicas={replicas}")
    if replicas == 0:
        wait_for("the operator to stop", lambda: not pods(kubectl), timeout=60)
    else:
        kubectl.within(NAMESPACE).run("rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=240s", timeout=250)
