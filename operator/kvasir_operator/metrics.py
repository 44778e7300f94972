"""The operator's own metrics. Labels are closed sets: no names of services or pods."""

from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info

RECONCILE_SECONDS: Final = Histogram(
    "kvasir_operator_reconcile_seconds",
    "Time to look at one service, plan, act and write its status.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
)
RECONCILES: Final = Counter("kvasir_operator_reconciles", "Looks at a service, by how they ended.", ["result"])
ACTIONS: Final = Counter(
    "kvasir_operator_actions", "Things done, by kind, reason and result.", ["kind", "why", "result"]
)
ERRORS: Final = Counter("kvasir_operator_errors", "Errors, by where they arose and what they were.", ["where", "cause"])
API_REQUESTS: Final = Counter("kvasir_operator_api_requests", "Requests to the API server.", ["verb", "kind", "code"])
API_SECONDS: Final = Histogram(
    "kvasir_operator_api_request_seconds",
    "Time until the API server has answered.",
    ["verb", "kind"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
)
SCRAPES: Final = Counter("kvasir_operator_scrapes", "Readings of pods' /admin/state, by result.", ["result"])
EVENTS: Final = Counter("kvasir_operator_events", "Kubernetes Events, by what became of them.", ["result"])
ADMISSIONS: Final = Counter("kvasir_operator_admissions", "Reviews that the webhook answered, by result.", ["result"])
WEBHOOK_CERTIFICATE_EXPIRY: Final = Gauge(
    "kvasir_operator_webhook_certificate_expiry_timestamp_seconds", "When the webhook's certificate ends."
)
SERVICES: Final = Gauge("kvasir_operator_services", "InferenceServices that are looked after.")
PODS: Final = Gauge("kvasir_operator_pods", "Pods of all services, by stage.", ["stage"])
WAITING: Final = Gauge("kvasir_operator_waiting_reconciles", "Services that are due and wait for their turn.")
LEADER: Final = Gauge("kvasir_operator_leader", "1 while this process leads.")
SYNCED: Final = Gauge("kvasir_operator_synced_timestamp_seconds", "When the cache was last compared with the cluster.")
BUILD: Final = Info("kvasir_operator_build", "Version of the operator.")

__all__ = [
    "ACTIONS",
    "ADMISSIONS",
    "API_REQUESTS",
    "API_SECONDS",
    "BUILD",
    "ERRORS",
    "EVENTS",
    "LEADER",
    "PODS",
    "RECONCILES",
    "RECONCILE_SECONDS",
    "REGISTRY",
    "SCRAPES",
    "SERVICES",
    "SYNCED",
    "WAITING",
    "WEBHOOK_CERTIFICATE_EXPIRY",
]
