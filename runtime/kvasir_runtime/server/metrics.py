"""Prometheus series of the front end, under vLLM's names, labels and buckets.

What the engine counts is read from its last report when somebody scrapes; what clients feel is observed as it happens.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvasir_runtime.contract import metric_names as names
from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.engine.async_engine import RequestTimes
from kvasir_runtime.engine.messages import EngineReady, EngineStats, FinishReason

LABELS: Final = (names.MODEL_LABEL, "engine")
ENGINE_INDEX: Final = "0"

_FIRST_TOKEN_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_NEXT_TOKEN_BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

TIME_HISTOGRAMS: Final = {
    names.TIME_TO_FIRST_TOKEN: (_FIRST_TOKEN_BUCKETS, "Seconds from arrival to the first token."),
    names.INTER_TOKEN_LATENCY: (_NEXT_TOKEN_BUCKETS, "Seconds between one output and the next."),
    names.E2E_LATENCY: (_REQUEST_BUCKETS, "Seconds from arrival to the last token."),
    names.QUEUE_TIME: (_REQUEST_BUCKETS, "Seconds a request waited for the scheduler."),
    names.PREFILL_TIME: (_REQUEST_BUCKETS, "Seconds from being scheduled to the first token."),
    names.DECODE_TIME: (_REQUEST_BUCKETS, "Seconds from the first token to the last."),
    names.INFERENCE_TIME: (_REQUEST_BUCKETS, "Seconds from being scheduled to the last token."),
}
TOKEN_HISTOGRAMS: Final = {
    names.REQUEST_PROMPT_TOKENS: "Prompt tokens of a request.",
    names.REQUEST_GENERATION_TOKENS: "Tokens generated for a request's choice.",
}


def kv_usage(stats: EngineStats) -> float:
    return stats.blocks_active / stats.blocks_total if stats.blocks_total else 0.0


def _device_hits(stats: EngineStats) -> int:
    return stats.prefix_hit_tokens - stats.tiers.host_hit_tokens - stats.tiers.disk_hit_tokens


COUNTERS: Final[dict[str, tuple[str, Callable[[EngineStats], float]]]] = {
    names.PREFIX_CACHE_QUERIES: (
        "Prompt tokens looked up in the prefix cache.",
        lambda stats: stats.prefix_query_tokens,
    ),
    names.PREFIX_CACHE_HITS: ("Prompt tokens found in the prefix cache of the device.", _device_hits),
    names.EXTERNAL_PREFIX_CACHE_QUERIES: (
        "Prompt tokens looked up in host memory and on disk.",
        lambda stats: stats.prefix_query_tokens - _device_hits(stats) if stats.tiers.host_total else 0,
    ),
    names.EXTERNAL_PREFIX_CACHE_HITS: (
        "Prompt tokens found in host memory and on disk.",
        lambda stats: stats.tiers.host_hit_tokens + stats.tiers.disk_hit_tokens,
    ),
    names.KV_BLOCKS_DROPPED: (
        "KV blocks that found no room in host memory, or left it before they were written.",
        lambda stats: stats.tiers.dropped,
    ),
    names.NUM_PREEMPTIONS: ("Times that a running request gave up its blocks.", lambda stats: stats.preemptions),
    names.PROMPT_TOKENS: ("Prompt tokens processed.", lambda stats: stats.prompt_tokens),
    names.GENERATION_TOKENS: ("Tokens generated.", lambda stats: stats.generation_tokens),
    names.WARMUP_TOKENS: ("Prompt tokens computed before anybody asked.", lambda stats: stats.warmup_tokens),
}
GAUGES: Final[dict[str, tuple[str, Callable[[EngineStats], float]]]] = {
    names.NUM_REQUESTS_RUNNING: ("Sequences in the running batch.", lambda stats: stats.running),
    names.NUM_REQUESTS_WAITING: ("Sequences that wait for the scheduler.", lambda stats: stats.waiting),
    names.KV_CACHE_USAGE: ("Share of the KV blocks in use, 0 to 1.", kv_usage),
    names.GPU_CACHE_USAGE: (f"Old name of {names.KV_CACHE_USAGE}.", kv_usage),
    names.KV_DISK_BYTES: ("Bytes of KV blocks on disk.", lambda stats: stats.tiers.disk_bytes),
    names.CACHE_VALUE: ("Tokens that the cache is expected to save, decayed.", lambda stats: stats.cache_value),
}


def one_two_five(limit: int) -> list[float]:
    """1, 2, 5, 10, 20, … up to `limit`: vLLM's buckets for token counts."""
    values = (digit * 10**power for power in range(len(str(limit))) for digit in (1, 2, 5))
    return [float(value) for value in values if value <= limit]


class Metrics:
    """The registry of one server. Histograms of tokens exist once the engine has said how long a sequence may be."""

    def __init__(self, model_name: str, args: EngineArgs) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, ENGINE_INDEX)
        self._args = args
        self._times = {name: self._histogram(name, text, buckets) for name, (buckets, text) in TIME_HISTOGRAMS.items()}
        self._tokens: dict[str, Histogram] = {}
        finished = Counter(
            names.REQUEST_SUCCESS, "Finished choices by reason.", (*LABELS, "finished_reason"), registry=self.registry
        )
        self._finished = {reason: finished.labels(*self._labels, reason.value) for reason in FinishReason}

    def engine_ready(self, ready: EngineReady, stats: Callable[[], EngineStats], startup: dict[str, float]) -> None:
        """Add what is known only now: the engine's own counts, its cache and how long the start took."""
        buckets = one_two_five(ready.max_model_len)
        self._tokens = {name: self._histogram(name, text, buckets) for name, text in TOKEN_HISTOGRAMS.items()}
        self.registry.register(_EngineCollector(self._labels, stats, ready, self._args, startup))

    def watch_draining(self, draining: Callable[[], bool]) -> None:
        self.registry.register(_DrainingCollector(self._labels, draining))

    def watch_sleep(self, level: Callable[[], int]) -> None:
        self.registry.register(_SleepCollector(self._labels, level))

    def watch_adapters(self, max_loras: int, in_use: Callable[[], tuple[set[str], set[str]]]) -> None:
        """`in_use`: names of adapters with running and with waiting requests."""
        self.registry.register(_AdapterCollector(max_loras, in_use))

    def first_token(self, seconds: float) -> None:
        self._times[names.TIME_TO_FIRST_TOKEN].observe(seconds)

    def next_tokens(self, seconds: float) -> None:
        self._times[names.INTER_TOKEN_LATENCY].observe(seconds)

    def request_finished(
        self, times: RequestTimes, now: float, *, prompt_tokens: int, generated: Sequence[tuple[str, int]]
    ) -> None:
        """Observe one prompt's end. `generated`: finish reason and token count of each of its choices."""
        self._times[names.E2E_LATENCY].observe((times.last_token or now) - times.arrived)
        if times.scheduled is not None:
            self._times[names.QUEUE_TIME].observe(max(0.0, times.scheduled - times.arrived))
            if times.first_token is not None and times.last_token is not None:
                self._times[names.PREFILL_TIME].observe(times.first_token - times.scheduled)
                self._times[names.DECODE_TIME].observe(times.last_token - times.first_token)
                self._times[names.INFERENCE_TIME].observe(times.last_token - times.scheduled)
        self._tokens[names.REQUEST_PROMPT_TOKENS].observe(prompt_tokens)
        for reason, tokens in generated:
            self._tokens[names.REQUEST_GENERATION_TOKENS].observe(tokens)
            self._finished[FinishReason(reason)].inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, text, LABELS, buckets=buckets, registry=self.registry)
        return histogram.labels(*self._labels)


class _EngineCollector:
    """Turns the engine's last report into series at scrape time."""

    def __init__(
        self,
        labels: tuple[str, str],
        stats: Callable[[], EngineStats],
        ready: EngineReady,
        args: EngineArgs,
        startup: dict[str, float],
    ) -> None:
        self._labels = labels
        self._stats = stats
        self._startup = startup
        self._block_size = ready.block_size
        self._cache_config = {
            "block_size": str(ready.block_size),
            "cache_dtype": args.kv_cache_dtype,
            "enable_prefix_caching": str(args.enable_prefix_caching),
            "gpu_memory_utilization": str(args.gpu_memory_utilization),
            "num_gpu_blocks": str(ready.num_blocks),
            "engine": ENGINE_INDEX,
        }

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for name, (text, read) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            gauge.add_metric(self._labels, read(stats))
            yield gauge
        for name, (text, read) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(self._labels, read(stats))
            yield counter
        yield self._tiers(stats)
        yield from self._moves(stats)
        yield self._disk_state(stats)
        yield self._pinned(stats)
        yield self._info()
        yield self._startup_seconds()

    def _tiers(self, stats: EngineStats) -> Metric:
        tiers = GaugeMetricFamily(
            names.CACHED_TOKENS_BY_TIER, "Tokens whose KV is kept, by tier.", labels=(*LABELS, "tier")
        )
        blocks = {
            "device": stats.blocks_active + stats.blocks_cached,
            "host": stats.tiers.host_cached,
            "disk": stats.tiers.disk_cached,
        }
        for tier, count in blocks.items():
            tiers.add_metric((*self._labels, tier), count * self._block_size)
        return tiers

    def _moves(self, stats: EngineStats) -> Iterable[Metric]:
        tiers = stats.tiers
        hits = {"device": _device_hits(stats), "host": tiers.host_hit_tokens, "disk": tiers.disk_hit_tokens}
        yield self._counter(names.HIT_TOKENS_BY_TIER, "Prompt tokens found in the cache, by tier.", "tier", hits)
        moves = {"save": tiers.saved, "load": tiers.loaded, "write": tiers.written, "read": tiers.read}
        yield self._counter(
            names.KV_BLOCKS_MOVED, "KV blocks copied to and from host memory and files.", "transfer", moves
        )
        rejected = {"corrupt": tiers.corrupt_files, "foreign": tiers.foreign_files}
        yield self._counter(names.KV_FILES_REJECTED, "Files of KV blocks that were not used.", "reason", rejected)

    def _counter(self, name: str, text: str, label: str, values: dict[str, int]) -> Metric:
        counter = CounterMetricFamily(name, text, labels=(*LABELS, label))
        for value, count in values.items():
            counter.add_metric((*self._labels, value), count)
        return counter

    def _disk_state(self, stats: EngineStats) -> Metric:
        gauge = GaugeMetricFamily(
            names.KV_DISK_STATE, "State of the disk tier of the KV cache.", labels=(*LABELS, "state")
        )
        for state in ("none", "on", "full", "failed"):
            gauge.add_metric((*self._labels, state), float(state == stats.tiers.disk_state))
        return gauge

    def _pinned(self, stats: EngineStats) -> Metric:
        pinned = GaugeMetricFamily(names.PINNED_TOKENS, "Tokens whose KV goes last, after a warmup.", labels=LABELS)
        pinned.add_metric(self._labels, stats.blocks_pinned * self._block_size)
        return pinned

    def _info(self) -> Metric:
        info = GaugeMetricFamily(names.CACHE_CONFIG_INFO, "Settings of the KV cache.", labels=tuple(self._cache_config))
        info.add_metric(tuple(self._cache_config.values()), 1)
        return info

    def _startup_seconds(self) -> Metric:
        seconds = GaugeMetricFamily(
            names.STARTUP_SECONDS, "Seconds of the start-up, by phase.", labels=(*LABELS, "phase")
        )
        for phase, value in self._startup.items():
            seconds.add_metric((*self._labels, phase), value)
        return seconds


class _DrainingCollector:
    def __init__(self, labels: tuple[str, str], draining: Callable[[], bool]) -> None:
        self._labels = labels
        self._draining = draining

    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily(names.DRAINING, "1 while the server takes no new work.", labels=LABELS)
        gauge.add_metric(self._labels, float(self._draining()))
        yield gauge


class _AdapterCollector:
    """Which adapters are at work, as vLLM tells it: in labels, with the time as value."""

    def __init__(self, max_loras: int, in_use: Callable[[], tuple[set[str], set[str]]]) -> None:
        self._max_loras = str(max_loras)
        self._in_use = in_use

    def collect(self) -> Iterable[Metric]:
        labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        gauge = GaugeMetricFamily(names.LORA_REQUESTS_INFO, "Adapters of running and waiting requests.", labels=labels)
        running, waiting = (",".join(sorted(found)) for found in self._in_use())
        gauge.add_metric((self._max_loras, waiting, running), time.time())
        yield gauge


class _SleepCollector:
    """One of three states is 1. The names are vLLM's; at level 1 our weights stay where they are, in host memory."""

    STATES: Final = ("awake", "weights_offloaded", "discard_all")

    def __init__(self, labels: tuple[str, str], level: Callable[[], int]) -> None:
        self._labels = labels
        self._level = level

    def collect(self) -> Iterable[Metric]:
        text = "Whether the engine is awake, or asleep at level 1 (weights_offloaded) or 2 (discard_all)."
        gauge = GaugeMetricFamily(names.ENGINE_SLEEP_STATE, text, labels=(*LABELS, "sleep_state"))
        for number, state in enumerate(self.STATES):
            gauge.add_metric((*self._labels, state), float(number == self._level()))
        yield gauge
