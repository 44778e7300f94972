"""The replicas as this router knows them, and which of them gets a request. Pure, time an argument in seconds."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from kvasir_router.health import Health
from kvasir_router.policies import POLICIES, Choice, Policy, spread
from kvasir_router.prompts import Ask
from kvasir_runtime.contract.router_api import RouterConfig, RouterEndpoint, RouterEndpointState

REPORT_VALID_S: Final = 30.0
"""How long a load that the operator told counts: it looks at busy replicas every few seconds."""

SWAP_TOKENS: Final = 4096
"""Tokens in flight that cost about as much time as an adapter takes on its way to the device."""

GOLDEN: Final = 0.6180339887498949
"""Steps of the golden ratio spread evenly over [0, 1), however few there are."""


@dataclass(slots=True)
class Endpoint:
    """A replica. `own` tokens and `inflight` requests are this router's; `others` are those of the last report."""

    spec: RouterEndpoint
    health: Health = field(default_factory=Health)
    inflight: int = 0
    own: float = 0.0
    others: float = 0.0
    reported_at: float = float("-inf")

    def load(self, now: float) -> float:
        """Tokens in flight, as far as is known."""
        return self.own + (self.others if now - self.reported_at < REPORT_VALID_S else 0.0)

    def report(self, load_tokens: float | None, now: float) -> None:
        """Note what it said of its load; what this router sent there is known better."""
        if load_tokens is not None:
            self.others, self.reported_at = max(0.0, load_tokens - self.own), now

    def has_room(self) -> bool:
        """Whether it is warmed for one more request."""
        return self.spec.max_concurrency is None or self.inflight < self.spec.max_concurrency


class Fleet:
    """Endpoints by name, replaced as a whole by each configuration; those that stay keep what is known of them."""

    def __init__(self) -> None:
        self.config: RouterConfig | None = None
        self.endpoints: dict[str, Endpoint] = {}
        self.policy: Policy = POLICIES["PrefixAffinity"]()
        self._draw = 0.0

    def apply(self, config: RouterConfig, now: float) -> None:
        """Take a configuration over."""
        if self.config is None or config.policy != self.config.policy:
            self.policy = POLICIES[config.policy]()
        endpoints: dict[str, Endpoint] = {}
        for spec in config.endpoints:
            known = self.endpoints.get(spec.name)
            if known is None or known.spec.address != spec.address:
                known = Endpoint(spec)  # another process: nothing that was known holds
            known.spec = spec
            known.report(spec.load_tokens, now)
            endpoints[spec.name] = known
        self.config, self.endpoints = config, endpoints

    def available(self, now: float) -> bool:
        """Whether any replica may be asked."""
        return bool(self._open(now))

    def has_room(self, now: float) -> bool:
        """Whether any replica may be asked and is warmed for one more request."""
        return any(each.has_room() for each in self._open(now).values())

    def choose(self, ask: Ask, now: float, tried: Collection[str] = ()) -> Choice | None:
        """The replica for a request; None when none may be asked. `tried` are passed over."""
        usable = self._usable(ask, now, tried)
        if not usable:
            return None
        usable = self._of_one_revision(ask, usable)
        return self.policy.choose(ask, {name: each.load(now) for name, each in usable.items()})

    def sent(self, ask: Ask, name: str, now: float) -> Endpoint:
        """A request goes to the replica `name`; `done` must follow."""
        endpoint = self.endpoints[name]
        endpoint.inflight += 1
        endpoint.own += ask.cost
        endpoint.health.asked(now)
        self.policy.sent(ask, name)
        return endpoint

    def done(self, ask: Ask, endpoint: Endpoint) -> None:
        """Its answer is out, or it failed."""
        endpoint.inflight -= 1
        endpoint.own -= ask.cost

    def states(self, now: float) -> list[RouterEndpointState]:
        """All replicas as `GET /admin/state` shows them."""
        return [
            RouterEndpointState(
                name=each.spec.name,
                inflight=each.inflight,
                load_tokens=each.load(now),
                circuit=each.health.circuit(now),
                answers=each.health.answers,
                draining=each.spec.draining,
            )
            for each in self.endpoints.values()
        ]

    def _open(self, now: float) -> dict[str, Endpoint]:
        """Replicas that may be asked. When health checks find none of them, they count for nothing."""
        serving = {name: each for name, each in self.endpoints.items() if not each.spec.draining}
        return {name: each for name, each in serving.items() if each.health.available(now)} or {
            name: each for name, each in serving.items() if each.health.may_pass(now)
        }

    def _usable(self, ask: Ask, now: float, tried: Collection[str]) -> dict[str, Endpoint]:
        usable = {name: each for name, each in self._open(now).items() if name not in tried}
        return _with_adapter(ask.model, usable, now)

    def _of_one_revision(self, ask: Ask, usable: dict[str, Endpoint]) -> dict[str, Endpoint]:
        """A canary: the revision by its weight. A session keeps to one; all else goes in turn, so that weights hold."""
        weights = self.config.weights if self.config is not None else {}
        revisions = sorted({each.spec.revision for each in usable.values()})
        if not weights or len(revisions) < 2:
            return usable
        if ask.session:
            draw = ask.blocks[0] / 2**64
        else:
            self._draw = draw = (self._draw + GOLDEN) % 1.0
        revision = spread(revisions, weights, draw)
        return {name: each for name, each in usable.items() if each.spec.revision == revision} or usable


def _with_adapter(model: str, usable: dict[str, Endpoint], now: float) -> dict[str, Endpoint]:
    """Replicas that serve the adapter `model`; of these, those that have it on the device, unless they are busier.

    A replica that has it not must swap it in, which is worth waiting behind `SWAP_TOKENS` and half as much work again.
    """
    serving = {name: each for name, each in usable.items() if model in (each.spec.adapters or ())}
    resident = {name: each for name, each in serving.items() if model in each.spec.resident}
    if not resident or len(resident) == len(serving):
        return serving or usable
    mean = sum(each.load(now) for each in serving.values()) / len(serving)
    calm = {name: each for name, each in resident.items() if each.load(now) <= 1.5 * mean + SWAP_TOKENS}
    return calm or serving
