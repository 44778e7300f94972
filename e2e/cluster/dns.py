"""The cluster's name server: answers for cluster.local from Services and Endpoints, forwards everything else.

Debian has no CoreDNS package, so the cluster brings this one. Pods reach it in the ordinary way: through the Service
`kube-dns` in `kube-system`, whose address the kubelet writes into their resolv.conf.

    python -m e2e.cluster.dns --listen 10.243.0.2 --kubeconfig FILE --upstream-network 3

It listens in the node's network, where port 53 is free, and asks upstream from the machine's: the machine's resolver is
often one that listens on the machine's loopback address.
"""

import argparse
import asyncio
import ctypes
import ipaddress
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import cast

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import httpx

from e2e.cluster.api import Api
from e2e.cluster.dns_records import TTL, Key, Store, resolve
from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import CLUSTER_DOMAIN

log = logging.getLogger("dns")
UPSTREAM_TIMEOUT = 4.0  # seconds; a resolver in a pod asks again after 5
RETRY = 1.0  # seconds before a broken watch is opened again


def follow(api: Api, path: str, objects: dict[Key, dict[str, object]]) -> None:
    """Keeps `objects` like the collection at `path`, for ever."""
    while True:
        try:
            _list_and_watch(api, path, objects)
        except (ClusterError, httpx.HTTPError, KeyError, ValueError) as error:
            log.warning("watch of %s: %s; again in %.0f s", path, error, RETRY)
            time.sleep(RETRY)


def _list_and_watch(api: Api, path: str, objects: dict[Key, dict[str, object]]) -> None:
    listing = api.get(path)
    current = {_key(item): item for item in listing["items"]}
    for gone in objects.keys() - current.keys():
        del objects[gone]
    objects.update(current)
    for event in api.watch(path, listing["metadata"]["resourceVersion"]):
        if event["type"] == "ERROR":  # mostly: the version is too old; list again
            raise ClusterError(str(event["object"].get("message")))
        if event["type"] == "DELETED":
            objects.pop(_key(event["object"]), None)
        elif event["type"] in ("ADDED", "MODIFIED"):
            objects[_key(event["object"])] = event["object"]


def _key(item: dict[str, dict[str, str]]) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]


class Answerer:
    """Turns a question in wire form into an answer in wire form."""

    def __init__(self, store: Store, own_networks: list[ipaddress.IPv4Network]) -> None:
        self._store = store
        self._own_networks = own_networks

    async def answer(self, wire: bytes) -> bytes | None:
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if not query.question:
            return None
        name = query.question[0].name.to_text(omit_final_dot=True)
        if self._ours(name):
            return self._local(query, name).to_wire()
        return await self._forward(query)

    def _ours(self, name: str) -> bool:
        name = name.lower()
        if name.endswith(".in-addr.arpa"):
            text = ".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))
            try:
                return any(ipaddress.IPv4Address(text) in network for network in self._own_networks)
            except ValueError:
                return False
        return name == CLUSTER_DOMAIN or name.endswith(f".{CLUSTER_DOMAIN}")

    def _local(self, query: dns.message.Message, name: str) -> dns.message.Message:
        question = query.question[0]
        answer = resolve(self._store, CLUSTER_DOMAIN, name, dns.rdatatype.to_text(question.rdtype))
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        response.set_rcode(dns.rcode.NOERROR if answer.exists else dns.rcode.NXDOMAIN)
        kinds = dict.fromkeys(record.kind for record in answer.records)
        for kind in kinds:
            data = [record.data for record in answer.records if record.kind == kind]
            response.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", kind, data))
        return response

    async def _forward(self, query: dns.message.Message) -> bytes:
        for server in _upstream():
            try:
                reply, _ = await dns.asyncquery.udp_with_fallback(query, server, timeout=UPSTREAM_TIMEOUT)
                return reply.to_wire()
            except (dns.exception.DNSException, OSError) as error:
                log.info("upstream %s: %s", server, error)
        response = dns.message.make_response(query, recursion_available=True)
        response.set_rcode(dns.rcode.SERVFAIL)
        return response.to_wire()


def _upstream() -> list[str]:
    """The machine's own resolvers, read anew each time: a laptop changes its networks."""
    try:
        return [str(server) for server in dns.resolver.Resolver().nameservers]
    except dns.resolver.NoResolverConfiguration:
        return []


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.create_task(self._reply(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, data: bytes, addr: tuple[str, int]) -> None:
        if (reply := await self._answerer.answer(data)) is not None:
            self._transport.sendto(reply, addr)


def listen(address: str, port: int = 53) -> tuple[socket.socket, socket.socket]:
    """Sockets for UDP and TCP. A socket stays in the network in which it was made."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    return datagrams, socket.create_server((address, port))


def move_to_network(namespace: int) -> None:
    """From here on, sockets are made in another network, given by an open descriptor of its namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot join the network of descriptor {namespace}: {os.strerror(number)}")
    os.close(namespace)


async def serve(answerer: Answerer, datagrams: socket.socket, streams: socket.socket) -> None:
    """Answers on UDP and TCP until it is ended."""

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = int.from_bytes(await reader.readexactly(2))
            if (reply := await answerer.answer(await reader.readexactly(size))) is not None:
                writer.write(len(reply).to_bytes(2) + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            log.debug("client went away: %s", error)
        finally:
            writer.close()

    await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Udp(answerer), sock=datagrams)
    server = await asyncio.start_server(stream, sock=streams)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True, metavar="ADDRESS", help="IPv4 address to answer on, port 53")
    parser.add_argument("--kubeconfig", required=True, type=Path, help="whose user may list Services and Endpoints")
    parser.add_argument(
        "--network", action="append", default=[], type=ipaddress.IPv4Network, help="own network: not asked upstream"
    )
    parser.add_argument("--upstream-network", type=int, metavar="FD", help="network namespace to ask upstream from")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sockets = listen(arguments.listen)
    if arguments.upstream_network is not None:
        move_to_network(arguments.upstream_network)
    store = Store()
    with Api.from_kubeconfig(arguments.kubeconfig) as api:
        for path, objects in (("/api/v1/services", store.services), ("/api/v1/endpoints", store.endpoints)):
            threading.Thread(target=follow, args=(api, path, objects), daemon=True).start()
        asyncio.run(serve(Answerer(store, arguments.network), *sockets))


if __name__ == "__main__":
    main()
