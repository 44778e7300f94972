"""The front end's life: both ports, the engine's messages, signals, and how it ends.

Everything runs in one event loop; the first of `Lifecycle.ended`'s reasons ends it.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from socket import socket
from typing import Final

import uvloop

from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError
from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.edge.http_server import FLUSH_S, HttpServer, handled_signals, make_server
from kvasir_runtime.edge.process import process_started, raise_open_files_limit
from kvasir_runtime.engine.async_engine import AsyncEngine, EngineGoneError
from kvasir_runtime.engine.heartbeat import Verdict
from kvasir_runtime.engine.launcher import EngineProcess
from kvasir_runtime.engine.messages import CacheSaved, SaveCache, StartupProgress
from kvasir_runtime.fetch.cli import read_secrets
from kvasir_runtime.lora.checkpoint import adapter_limits
from kvasir_runtime.lora.sources import AdapterSources, temporary_cache
from kvasir_runtime.model_files import ModelFiles
from kvasir_runtime.server.adapters import AdapterRegistry
from kvasir_runtime.server.lifecycle import Lifecycle, StartupClock
from kvasir_runtime.server.metrics import Metrics, kv_usage
from kvasir_runtime.server.operator_app import build_operator_app, liveness, usable_tokens
from kvasir_runtime.server.rates import RATE_WINDOW_S, SAMPLE_INTERVAL_S, Rates
from kvasir_runtime.server.service import Service
from kvasir_runtime.server.sleep import Sleep
from kvasir_runtime.server.startup_report import make_report
from kvasir_runtime.server.user_app import build_user_app
from kvasir_runtime.tokenizer import Tokenizer

GIVE_UP_AFTER_S: Final = 10.0
"""How long a dead engine is left to the kubelet's liveness probe before the process ends by itself."""

SAVE_S: Final = 5.0
"""How long a process that ends writes its KV cache to disk: with the drain it must be within a pod's grace period."""

logger = logging.getLogger("kvasir.server")


def serve_forever(args: EngineArgs, model: ModelFiles, ports: tuple[socket, socket], engine: EngineProcess) -> int:
    """Serve until told to stop (returns 0); raises KvasirError when the engine ended or could not start."""
    raise_open_files_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failure = runner.run(_serve(args, model, ports, engine))
    if failure is not None:
        raise KvasirError(failure.cause, failure.message, failure.remedy, **failure.detail)
    return 0


class _Observer:
    """Passes what clients feel to the series and to /admin/state."""

    def __init__(self, metrics: Metrics, rates: Rates) -> None:
        self._metrics = metrics
        self._rates = rates

    def first_token(self, seconds: float) -> None:
        self._metrics.first_token(seconds)
        self._rates.first_token(seconds, time.monotonic())

    def next_tokens(self, seconds: float) -> None:
        self._metrics.next_tokens(seconds)
        self._rates.next_tokens(seconds, time.monotonic())


async def _serve(
    args: EngineArgs, model: ModelFiles, ports: tuple[socket, socket], process: EngineProcess
) -> FailureReport | None:
    service = make_service(args, model, process)
    lifecycle = service.lifecycle
    servers = [make_server(build_operator_app(service)), make_server(build_user_app(service))]
    with handled_signals(lambda name: lifecycle.on_signal(name, args.drain_timeout)):
        tasks = [
            asyncio.create_task(server.serve(sockets=[port]))
            for server, port in zip(servers, reversed(ports), strict=True)
        ]
        tasks += [
            asyncio.create_task(_end_on_failure(lifecycle, work))
            for work in (_start(service), _follow_engine(service), _watch_engine(service), _sample(service))
        ]
        try:
            await lifecycle.ended.wait()
        finally:
            await _stop(servers, tasks, service)
    return lifecycle.failure


def make_service(args: EngineArgs, model: ModelFiles, process: EngineProcess) -> Service:
    """Wire the parts of one front end; raises KvasirError for token files that cannot be used."""
    api_keys = BearerTokens(args.api_key, args.api_key_file)
    admin_tokens = BearerTokens(file=args.admin_token_file, flag="--admin-token-file")
    names = args.served_model_name or [Path(args.model).resolve().name]
    metrics, rates = Metrics(names[0], args), Rates()
    engine = AsyncEngine(process, _Observer(metrics, rates))
    lifecycle = Lifecycle(engine.abort_all)
    metrics.watch_draining(lambda: lifecycle.draining)
    clock = StartupClock(process_started(), time.monotonic())
    sleep = Sleep(engine, lifecycle)
    metrics.watch_sleep(lambda: sleep.level)
    adapters = make_adapters(args, model, engine)
    if args.enable_lora:
        metrics.watch_adapters(args.max_loras, engine.adapters_in_use)
    return Service(args, model, engine, lifecycle, clock, metrics, rates, api_keys, admin_tokens, sleep, adapters)


def make_adapters(args: EngineArgs, model: ModelFiles, engine: AsyncEngine) -> AdapterRegistry:
    """What serves adapters, and from where; raises KvasirError for a config.json without the model's sizes."""
    folder = Path(args.model).resolve().name
    names = args.served_model_name or [folder]
    cache = Path(args.lora_cache) if args.lora_cache else temporary_cache() if args.lora_schemes else None
    sources = AdapterSources(
        tuple(map(Path, args.lora_roots)),
        frozenset(args.lora_schemes),
        cache,
        Path(args.lora_secrets) if args.lora_secrets else None,
        read_secrets(None, os.environ),
    )
    limits = adapter_limits(model.config, args.max_lora_rank, [*names, folder]) if args.enable_lora else None
    return AdapterRegistry(engine, sources, limits, reserved=names, max_loras=args.max_loras)


async def _start(service: Service) -> None:
    """Load the tokenizer beside the engine; then the service is ready."""
    report = make_report(service.args.log_format)

    def on_progress(progress: StartupProgress) -> None:
        now = time.monotonic()
        service.clock.advance(progress, now)
        report.show(progress, now)

    service.engine.on_progress(on_progress)
    try:
        template = service.args.chat_template
        service.tokenizer = await asyncio.to_thread(Tokenizer.from_folder, service.model.path, template)
        ready = await service.engine.ready
    except EngineGoneError:
        return  # told by _follow_engine
    finally:
        report.close()
    seconds = service.clock.finish(time.monotonic())
    startup = service.clock.state(time.monotonic(), draining=False, failed=False).seconds
    service.metrics.engine_ready(ready, lambda: service.engine.stats, {**ready.startup_seconds, **startup})
    service.ready = ready
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process: never look at it again
    logger.info(
        "ready",
        extra={
            "seconds": round(seconds, 2),
            "model": service.model_names[0],
            "port": service.args.port,
            "admin_port": service.args.admin_port,
            "max_model_len": ready.max_model_len,
            "kv_tokens": usable_tokens(ready),
        },
    )


async def _follow_engine(service: Service) -> None:
    report = await service.engine.run()
    service.lifecycle.fail(report)


async def _watch_engine(service: Service) -> None:
    """End the process when the engine has been dead for a while and no liveness probe has done so."""
    dead_since: float | None = None
    while True:
        await asyncio.sleep(1.0)
        verdict = await liveness(service)
        now = time.monotonic()
        dead_since = None if verdict.alive else dead_since or now
        if dead_since is not None and (service.lifecycle.stopping or now - dead_since > GIVE_UP_AFTER_S):
            _give_up(service, verdict)
            return


def _give_up(service: Service, verdict: Verdict) -> None:
    report = FailureReport(
        Cause.ENGINE_DIED, f"the engine does not respond: {verdict.message}", "look for its last lines in the log"
    )
    service.engine.fail(report)
    service.engine.kill()
    service.lifecycle.fail(report)


async def _sample(service: Service) -> None:
    """Keep the rates, and say every few seconds how it goes while there is work."""
    said_at, steps = time.monotonic(), 0
    while True:
        now, stats = time.monotonic(), service.engine.stats
        service.rates.sample(stats, now)
        if now - said_at >= RATE_WINDOW_S and stats.steps > steps:
            logger.info("working", extra=_pace(service, now))
        if now - said_at >= RATE_WINDOW_S:
            said_at, steps = now, stats.steps
        await asyncio.sleep(SAMPLE_INTERVAL_S)


def _pace(service: Service, now: float) -> dict[str, float]:
    stats = service.engine.stats
    return {
        "running": stats.running,
        "waiting": stats.waiting,
        "kv_usage": round(kv_usage(stats), 3),
        "prefill_per_s": round(service.rates.prefill_per_s(now), 1),
        "decode_per_s": round(service.rates.decode_per_s(now), 1),
        "preemptions": stats.preemptions,
    }


async def _end_on_failure(lifecycle: Lifecycle, work: Awaitable[None]) -> None:
    """Run a task of the front end; what it raises ends the process with its reason."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except KvasirError as error:
        lifecycle.fail(error.report)
    except Exception as error:
        logger.exception("the front end failed")
        lifecycle.fail(FailureReport(Cause.INTERNAL_ERROR, f"{type(error).__name__}: {error}"))


async def _save_cache(service: Service) -> None:
    """Have cached KV blocks written to disk, so that the next process finds them."""
    try:
        async with asyncio.timeout(SAVE_S + FLUSH_S):
            saved = await service.engine.call(lambda call_id: SaveCache(call_id, SAVE_S))
    except (TimeoutError, EngineGoneError) as error:
        logger.warning("the KV cache was not saved", extra={"reason": str(error) or "the engine is busy"})
        return
    assert isinstance(saved, CacheSaved), saved
    logger.info("saved the KV cache", extra={"blocks": saved.written, "complete": saved.complete})


async def _stop(servers: list[HttpServer], tasks: list[asyncio.Task[None]], service: Service) -> None:
    """Let clients read their last bytes, then end everything."""
    if service.lifecycle.failure is not None:
        service.engine.fail(service.lifecycle.failure)
    elif service.args.kv_offload_disk is not None:
        await _save_cache(service)
    for server in servers:
        server.should_exit = True
    serving, working = tasks[: len(servers)], tasks[len(servers) :]
    await asyncio.wait(serving, timeout=FLUSH_S + 1)
    for task in (*serving, *working):
        task.cancel()
    await asyncio.gather(*serving, *working, return_exceptions=True)
    await service.adapters.close()
    await asyncio.to_thread(service.engine.close)
    logger.info("stopped")
