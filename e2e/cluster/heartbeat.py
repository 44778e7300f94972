"""Keeps API-only nodes Ready, and the claimed GPUs of the real node in its status.

A node whose Lease is not renewed for 40 s is marked unreachable by the node controller. This process renews the Leases
of nodes that have no kubelet. It also puts a claimed GPU capacity back if a kubelet that starts anew has reset it.

    python -m e2e.cluster.heartbeat --kubeconfig FILE
"""

import argparse
import logging
import time
from pathlib import Path

import httpx

from e2e.cluster import nodes
from e2e.cluster.api import Api, Object
from e2e.cluster.errors import ClusterError

log = logging.getLogger("heartbeat")
PERIOD = 5.0  # seconds; a kubelet's is 10


def beat(api: Api) -> None:
    """One round over all nodes."""
    for node in api.get("/api/v1/nodes")["items"]:
        name = node["metadata"]["name"]
        if nodes.API_ONLY in node["metadata"].get("labels", {}):
            nodes.renew_lease(api, name)
        claimed = claimed_gpus(node)
        if claimed is not None and node["status"].get("allocatable", {}).get(nodes.GPU) != claimed:
            log.info("node %s: putting %s claimed GPUs back", name, claimed)
            nodes.claim_capacity(api, name, int(claimed))


def claimed_gpus(node: Object) -> str | None:
    value: str | None = node["metadata"].get("annotations", {}).get(nodes.FAKE_GPUS)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", required=True, type=Path, help="whose user may renew Leases and patch nodes")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with Api.from_kubeconfig(arguments.kubeconfig) as api:
        while True:
            try:
                beat(api)
            except (ClusterError, httpx.HTTPError) as error:
                log.warning("%s; again in %.0f s", error, PERIOD)
            time.sleep(PERIOD)


if __name__ == "__main__":
    main()
