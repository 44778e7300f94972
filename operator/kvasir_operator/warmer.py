"""Warming replicas, and handing over what one of them knows: works that take minutes, beside the service's task."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from kvasir_operator.api.model import PromptsFrom, WarmupFromTraffic
from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.cluster import CONFIG_MAPS, Cluster
from kvasir_operator.errors import CONFLICT, ApiError, PodError
from kvasir_operator.fleet.handover import hand_over, held_by
from kvasir_operator.fleet.prefixes import Budget
from kvasir_operator.fleet.warmup import Replica, choose_prompts, in_words
from kvasir_operator.planning.actions import HandOverPrefixes, ServingPod, WarmUp
from kvasir_operator.planning.state import HandOver, Snapshot, Warming
from kvasir_operator.prefix_keeper import PrefixKeeper
from kvasir_operator.scrape import Scraper
from kvasir_operator.store import ServiceKey
from kvasir_operator.warmth import Warmth
from kvasir_runtime.contract.admin_api import MAX_LISTED_TOKENS, PrefixList, WarmupPrompt, WarmupRequest, WarmupState

log = logging.getLogger(__name__)

BUSY_SECONDS: Final = 0.5
"""An engine does one warmup at a time: whoever comes meanwhile is asked to come again."""
NOTHING_KNOWN: Final = "nothing is known to warm it with"


class Warmer:
    """Runs warmups and hand-overs as tasks of their own, and notes in `Warmth` how they end."""

    def __init__(
        self,
        cluster: Cluster,
        scraper: Scraper,
        keeper: PrefixKeeper,
        warmth: Warmth,
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._scraper = scraper
        self._keeper = keeper
        self._warmth = warmth
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_end: Callable[[ServiceKey], None] = lambda _: None
        """Called for the service when one of its works ends."""

    def warm_up(self, snapshot: Snapshot, action: WarmUp, token: str) -> None:
        """Begin to warm a pod; returns at once."""
        key = ServiceKey(snapshot.meta.namespace, snapshot.meta.name)
        before = self._warmth.warming(key, action.uid)
        failures = before.failures if before is not None and before.boot_id == action.boot_id else 0
        begun = Warming(action.boot_id, self._clock(), failures=failures)
        self._warmth.note_warming(key, action.uid, begun)
        self._run(key, self._warm_up(key, snapshot, action, token, begun))

    def hand_over(self, snapshot: Snapshot, action: HandOverPrefixes, token: str) -> None:
        """Begin to hand over what a pod knows; returns at once."""
        key = ServiceKey(snapshot.meta.namespace, snapshot.meta.name)
        begun = HandOver(self._clock())
        self._warmth.note_handover(key, action.uid, begun)
        self._run(key, self._hand_over(key, snapshot, action, token, begun))

    async def stop(self) -> None:
        """End all works; the engines end theirs when the connection is closed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, key: ServiceKey, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"warmth of {key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self.on_end(key))

    async def _warm_up(self, key: ServiceKey, snapshot: Snapshot, action: WarmUp, token: str, begun: Warming) -> None:
        try:
            result, words = await self._warmed(snapshot, action, token)
        except Exception as error:  # whatever it is, the pod must not wait for ever
            if not isinstance(error, ApiError | PodError):
                log.exception("warmup of %s", action.pod)
            ended = replace(begun, error=str(error) or type(error).__name__, failures=begun.failures + 1)
        else:
            ended = replace(begun, result=result, words=words)
        self._warmth.note_warming(key, action.uid, replace(ended, ended_at=self._clock()))

    async def _warmed(self, snapshot: Snapshot, action: WarmUp, token: str) -> tuple[WarmupState | None, str]:
        """What became of it; raises ApiError and PodError."""
        spec = snapshot.spec.warmup if snapshot.spec is not None else None
        assert spec is not None, "no warmup is planned that nobody asks for"
        texts, problems = await self._texts(snapshot.meta, spec.prompts_from)
        kept = await self._keeper.read(snapshot.meta) if spec.from_traffic is not None else {}
        replica = Replica(action.tokenizer, action.adapters)
        chosen = choose_prompts(spec, texts, list(kept.values()), replica, self._clock())
        left_out = [*problems, *chosen.left_out]
        if not chosen.prompts:
            return None, "; ".join([NOTHING_KNOWN, *left_out])
        request = WarmupRequest(
            prompts=list(chosen.prompts), max_tokens=chosen.max_tokens, timeout_s=min(3600.0, action.timeout_s)
        )
        state = await self._scraper.warm_up(action.ip, token, request)
        if state.boot_id not in ("", action.boot_id):
            raise PodError(0, "/admin/warmup: another process answered")
        return state, in_words(state, left_out)

    async def _texts(self, meta: ObjectMeta, source: PromptsFrom | None) -> tuple[list[str], list[str]]:
        """Prompts of a ConfigMap, one a line, and what is wrong with it; raises ApiError where that may pass."""
        if source is None:
            return [], []
        try:
            found = await self._cluster.get(CONFIG_MAPS, meta.namespace, source.config_map)
        except ApiError as error:
            if error.passing:
                raise
            return [], [f"ConfigMap {source.config_map} cannot be read: {error}"]
        text = (found.get("data") or {}).get(source.key)
        if not isinstance(text, str):
            return [], [f"ConfigMap {source.config_map} has no key {source.key}"]
        return [line for line in text.splitlines() if line.strip()], []

    async def _hand_over(
        self, key: ServiceKey, snapshot: Snapshot, action: HandOverPrefixes, token: str, begun: HandOver
    ) -> None:
        try:
            async with asyncio.timeout(action.timeout_s):
                words = await self._handed_over(snapshot, action, token)
        except TimeoutError:
            words = f"not handed over within {action.timeout_s:g} s"
        except Exception as error:  # what is not handed over is computed again when it is asked for
            if not isinstance(error, ApiError | PodError):
                log.exception("hand-over of %s", action.pod)
            words = f"not handed over: {error}"
        log.info("prefixes of %s: %s", action.pod, words)
        self._warmth.note_handover(key, action.uid, replace(begun, ended_at=self._clock(), words=words))

    async def _handed_over(self, snapshot: Snapshot, action: HandOverPrefixes, token: str) -> str:
        traffic = snapshot.spec.warmup.from_traffic if snapshot.spec is not None and snapshot.spec.warmup else None
        assert traffic is not None, "no hand-over is planned that nobody asks for"
        own = await self._keeper.ask(action.victim, traffic, token)
        lists = await self._lists(action.survivors, traffic, token)
        shares = hand_over(
            own,
            held_by((pod.tokenizer, listed) for pod, listed in lists),
            sorted(pod.name for pod, _ in lists),
            Budget(traffic.top_prefixes, traffic.max_tokens),
        )
        by_name = {pod.name: pod for pod, _ in lists}
        done = await asyncio.gather(
            *(self._replay(by_name[name], prompts, action.timeout_s, token) for name, prompts in shares.items()),
            return_exceptions=True,
        )
        well = [state for state in done if isinstance(state, WarmupState)]
        errors = [f"; {error}" for error in done if isinstance(error, BaseException)]
        told = f"{sum(state.prompts for state in well)} of {sum(map(len, shares.values()))} handed over"
        return f"{told}, {sum(state.computed_tokens for state in well):,} tokens computed{''.join(errors)}"

    async def _lists(
        self, survivors: Sequence[ServingPod], traffic: WarmupFromTraffic, token: str
    ) -> list[tuple[ServingPod, PrefixList]]:
        """What each survivor is asked for most; those that do not answer are left out."""
        found = await asyncio.gather(
            *(
                self._scraper.prefixes(pod.ip, token, traffic.top_prefixes, traffic.max_tokens, salted=traffic.salted)
                for pod in survivors
            ),
            return_exceptions=True,
        )
        return [(pod, listed) for pod, listed in zip(survivors, found, strict=True) if isinstance(listed, PrefixList)]

    async def _replay(self, pod: ServingPod, prompts: list[WarmupPrompt], timeout_s: float, token: str) -> WarmupState:
        """Have a survivor compute; one that is at another replica's prompts still is asked again."""
        request = WarmupRequest(prompts=prompts, max_tokens=MAX_LISTED_TOKENS, timeout_s=timeout_s)
        while True:
            try:
                return await self._scraper.warm_up(pod.ip, token, request)
            except PodError as error:
                if error.status != CONFLICT:
                    raise
            await asyncio.sleep(BUSY_SECONDS)
