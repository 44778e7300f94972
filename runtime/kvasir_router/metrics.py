"""Prometheus series of the router. What can be read from the state is read when somebody scrapes."""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from kvasir_runtime.contract.router_api import RouterState

_ROUTING_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
_WAIT_BUCKETS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 180.0, 300.0)
_ANSWER_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)

GAUGES: Final[dict[str, tuple[str, Callable[[RouterState], float]]]] = {
    "kvasir_router_inflight_requests": ("Requests that replicas are answering.", lambda state: state.inflight),
    "kvasir_router_held_requests": ("Requests that wait for a replica.", lambda state: state.held),
    "kvasir_router_held_longest_seconds": ("How long the first of them has waited.", lambda state: state.held_for_s),
    "kvasir_router_idle_seconds": ("Time since the last request finished, or the start.", lambda state: state.idle_s),
    "kvasir_router_draining": ("1 while the router ends.", lambda state: float(state.draining)),
}


class Metrics:
    """The registry of one router."""

    def __init__(self, state: Callable[[], RouterState], prefixes: Callable[[], int]) -> None:
        """`prefixes`: how many are remembered."""
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "kvasir_router_requests_total", "Requests answered, by status.", ["code"], registry=registry
        )
        self.choices = Counter(
            "kvasir_router_choices_total",
            "Requests sent to a replica, by why to that one.",
            ["reason"],
            registry=registry,
        )
        self.retries = Counter(
            "kvasir_router_retries_total", "Requests sent again, by what went wrong.", ["cause"], registry=registry
        )
        self.disconnects = Counter(
            "kvasir_router_client_disconnects_total", "Clients that did not wait for their answer.", registry=registry
        )
        self.routing = Histogram(
            "kvasir_router_routing_seconds",
            "Time from a request's last byte until it is sent to a replica, without holding.",
            buckets=_ROUTING_BUCKETS,
            registry=registry,
        )
        self.first_byte = Histogram(
            "kvasir_router_time_to_first_byte_seconds",
            "Time from a request's last byte to the first byte of its answer's body.",
            buckets=_ANSWER_BUCKETS,
            registry=registry,
        )
        self.held = Histogram(
            "kvasir_router_held_seconds", "How long requests were held.", buckets=_WAIT_BUCKETS, registry=registry
        )
        registry.register(_StateCollector(state, prefixes))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _StateCollector:
    def __init__(self, state: Callable[[], RouterState], prefixes: Callable[[], int]) -> None:
        self._state = state
        self._prefixes = prefixes

    def collect(self) -> Iterable[Metric]:
        state = self._state()
        for name, (text, read) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=read(state))
        yield GaugeMetricFamily("kvasir_router_prefixes", "Prefixes that are remembered.", value=self._prefixes())
        yield from _endpoint_gauges(state)


def _endpoint_gauges(state: RouterState) -> Iterable[Metric]:
    labels = ["endpoint"]
    inflight = GaugeMetricFamily("kvasir_router_endpoint_inflight_requests", "Of one replica.", labels=labels)
    load = GaugeMetricFamily("kvasir_router_endpoint_load_tokens", "Tokens in flight, as far as known.", labels=labels)
    usable = GaugeMetricFamily("kvasir_router_endpoint_usable", "1 while new requests may go there.", labels=labels)
    for each in state.endpoints:
        inflight.add_metric([each.name], each.inflight)
        load.add_metric([each.name], each.load_tokens)
        usable.add_metric([each.name], float(each.circuit != "open" and each.answers and not each.draining))
    yield from (inflight, load, usable)
