"""What the ports share: the fleet, the waiting room, connections, and the counts that the operator is told."""

import time
import uuid
from collections.abc import Callable

from kvasir_router.fleet import Endpoint, Fleet
from kvasir_router.health import RetryBudget
from kvasir_router.metrics import Metrics
from kvasir_router.policies import Choice, PrefixAffinity
from kvasir_router.prompts import Ask
from kvasir_router.settings import RouterSettings
from kvasir_router.upstream import Pool
from kvasir_router.waiting_room import WaitingRoom
from kvasir_runtime.contract.router_api import RouterConfig, RouterState


class Router:
    """One process's state; one event loop's alone."""

    def __init__(self, settings: RouterSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.boot_id = uuid.uuid4().hex
        self.clock = clock
        self.fleet = Fleet()
        self.pool = Pool(settings.connect_timeout, settings.response_timeout, clock)
        self.room = WaitingRoom(lambda: self.fleet.has_room(self.clock()), clock)
        self.budget = RetryBudget()
        self.draining = False
        self.inflight = 0
        self.buffered = 0
        self.finished = 0
        self._last_activity = clock()
        self.metrics = Metrics(self.state, self._prefixes)

    @property
    def config(self) -> RouterConfig | None:
        return self.fleet.config

    @property
    def ready(self) -> bool:
        """Whether requests may come in: it knows what to do with them."""
        return self.config is not None and not self.draining

    def apply(self, config: RouterConfig) -> None:
        """Route by another picture from now on."""
        self.fleet.apply(config, self.clock())
        self.pool.retain({endpoint.address for endpoint in config.endpoints})
        self.room.look()

    def choose(self, ask: Ask, tried: set[str]) -> Choice | None:
        """The replica for a request, one that was not tried if there is any; None when none may be asked."""
        now = self.clock()
        return self.fleet.choose(ask, now, tried) or self.fleet.choose(ask, now)

    def begin(self, ask: Ask, choice: Choice) -> Endpoint:
        """A request goes to a replica; `end` must follow."""
        self.metrics.choices.labels(choice.reason).inc()
        return self.fleet.sent(ask, choice.name, self.clock())

    def end(self, ask: Ask, endpoint: Endpoint) -> None:
        self.fleet.done(ask, endpoint)
        self.room.look()

    def came(self) -> None:
        """A request came in; `went` must follow."""
        self.inflight += 1

    def went(self) -> None:
        self.inflight -= 1
        self.finished += 1
        self._last_activity = self.clock()

    def idle_s(self) -> float:
        """Seconds since the last request finished, or since the start; 0 while there is one."""
        return 0.0 if self.inflight else self.clock() - self._last_activity

    def cold_start_left_s(self) -> float:
        """How long the first replica will still take, by the last starts and by how long is waited already."""
        expected = self.config.cold_start_s if self.config and self.config.cold_start_s is not None else 30.0
        return max(1.0, expected - self.room.longest_s())

    def state(self) -> RouterState:
        """What the operator is told."""
        return RouterState(
            boot_id=self.boot_id,
            config_version=self.config.version if self.config else None,
            draining=self.draining,
            inflight=self.inflight - len(self.room),
            held=len(self.room),
            held_for_s=round(self.room.longest_s(), 3),
            idle_s=round(self.idle_s(), 3),
            finished=self.finished,
            endpoints=self.fleet.states(self.clock()),
        )

    def _prefixes(self) -> int:
        policy = self.fleet.policy
        return len(policy.holders) if isinstance(policy, PrefixAffinity) else 0
