"""The operator port: probes that need no token, and /admin that does."""

import asyncio
import time
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from kvasir_runtime.contract.admin_api import (
    MAX_LISTED_PREFIXES,
    MAX_LISTED_TOKENS,
    AdapterReports,
    AdapterSet,
    AdminState,
    AnswerState,
    CapacityState,
    DrainRequest,
    DrainState,
    KVState,
    LatencyState,
    LivenessState,
    PrefixList,
    ReadinessState,
    ResetRequest,
    ResetState,
    SleepRequest,
    SleepState,
    StartupState,
    TierState,
    TokenState,
    WarmupRequest,
    WarmupState,
)
from kvasir_runtime.edge.gates import OperatorGate
from kvasir_runtime.engine.heartbeat import Verdict
from kvasir_runtime.engine.messages import CacheReset, EngineReady, ResetCache, TierStats
from kvasir_runtime.server.errors import ApiError, ErrorResponse, install_handlers
from kvasir_runtime.server.middleware import RequestScope
from kvasir_runtime.server.service import Service
from kvasir_runtime.server.stream import CLIENT_CLOSED_REQUEST, DisconnectWatch
from kvasir_runtime.server.warmup import Warmup, list_prefixes
from kvasir_runtime.version import version

CATCH_UP_S = 0.25
"""A front end that was itself held up has heartbeats waiting: it reads those before it calls the engine dead."""


_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {401: {"model": ErrorResponse}, 403: {"model": ErrorResponse}}
_BUSY: Final[dict[int | str, dict[str, Any]]] = {409: {"model": ErrorResponse}, 503: {"model": ErrorResponse}}


def build_operator_app(service: Service) -> ASGIApp:
    """The ASGI application of the operator port."""
    app = FastAPI(title="Kvasir operator port", version=version(), redoc_url=None)
    install_handlers(app)
    _add_probes(app, service)
    _add_admin(app, service)
    _add_adapters(app, service)
    _add_cache(app, service)
    _add_sleep(app, service)
    return RequestScope(app, OperatorGate(service.admin_tokens))


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/livez", response_model=LivenessState, responses={503: {"model": LivenessState}})
    async def livez() -> JSONResponse:
        verdict = await liveness(service)
        age = round(verdict.heartbeat_age_s, 3)
        state = LivenessState(alive=verdict.alive, heartbeat_age_s=age, message=verdict.message)
        return _probe(state, ok=verdict.alive)

    @app.get("/startupz", response_model=ReadinessState, responses={503: {"model": ReadinessState}})
    async def startupz() -> JSONResponse:
        started = service.ready is not None
        reason = "" if started else "loading"
        return _probe(ReadinessState(ready=started, reason=reason, startup=startup_state(service)), ok=started)

    @app.get("/readyz", response_model=ReadinessState, responses={503: {"model": ReadinessState}})
    async def readyz() -> JSONResponse:
        reason = not_ready_because(service)
        return _probe(ReadinessState(ready=not reason, reason=reason, startup=startup_state(service)), ok=not reason)


def _add_admin(app: FastAPI, service: Service) -> None:
    @app.get("/admin/state", responses=_REFUSALS)
    async def state() -> AdminState:
        return admin_state(service, time.monotonic())

    @app.post("/admin/drain", responses=_REFUSALS)
    async def drain(body: DrainRequest | None = None) -> DrainState:
        timeout = None if body is None else body.timeout_s
        service.lifecycle.drain(service.args.drain_timeout if timeout is None else timeout)
        return DrainState(draining=True, inflight=service.lifecycle.inflight)

    @app.post("/admin/undrain", responses=_REFUSALS)
    async def undrain() -> DrainState:
        if not service.lifecycle.undrain():
            raise ApiError(HTTPStatus.CONFLICT, "the process is stopping and cannot serve again", code="stopping")
        return DrainState(draining=False, inflight=service.lifecycle.inflight)


def _add_adapters(app: FastAPI, service: Service) -> None:
    def reports() -> AdapterReports:
        adapters = service.adapters
        return AdapterReports(
            boot_id=service.lifecycle.boot_id,
            tag=adapters.tag,
            adapters=adapters.reports(),
            versions=list(adapters.states()),
        )

    @app.get("/admin/adapters", responses=_REFUSALS)
    async def adapters() -> AdapterReports:
        return reports()

    @app.put("/admin/adapters", responses=_REFUSALS | _BUSY)
    async def want_adapters(body: AdapterSet) -> AdapterReports:
        service.adapters.apply(body.adapters, body.tag)
        return reports()


def _add_cache(app: FastAPI, service: Service) -> None:
    warmup = Warmup(service)

    @app.post("/admin/warmup", response_model=WarmupState, responses=_REFUSALS | _BUSY)
    async def warm_up(body: WarmupRequest, request: Request) -> WarmupState | Response:
        work = asyncio.ensure_future(warmup.run(body))

        def hang_up() -> None:
            work.cancel()

        watch = DisconnectWatch(request.receive, hang_up)
        try:
            return await work
        except asyncio.CancelledError:
            if watch.gone:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            raise
        finally:
            work.cancel()
            watch.stop()

    @app.get("/admin/prefixes", responses=_REFUSALS | _BUSY)
    async def prefixes(
        count: Annotated[int, Query(ge=1, le=MAX_LISTED_PREFIXES)] = 64,
        max_tokens: Annotated[int, Query(ge=1, le=MAX_LISTED_TOKENS)] = 65_536,
        salted: Annotated[bool, Query(description="those of prompts with a cache_salt as well")] = False,
    ) -> PrefixList:
        return await list_prefixes(service, count, max_tokens, salted=salted)

    @app.post("/admin/reset_prefix_cache", responses=_REFUSALS | _BUSY)
    async def reset_prefix_cache(body: ResetRequest | None = None) -> ResetState:
        service.loaded()
        files = body is not None and body.files
        done = await service.engine.call(lambda call_id: ResetCache(call_id, files))
        assert isinstance(done, CacheReset), done
        if done.error:
            raise ApiError(HTTPStatus.CONFLICT, f"cannot reset the whole cache: {done.error}", code="busy")
        return ResetState(blocks=done.blocks)


def _add_sleep(app: FastAPI, service: Service) -> None:
    @app.post("/admin/sleep", responses=_REFUSALS | _BUSY)
    async def sleep(body: SleepRequest | None = None) -> SleepState:
        wanted = body or SleepRequest()
        service.loaded()
        timeout = service.args.drain_timeout if wanted.timeout_s is None else wanted.timeout_s
        return await service.sleep.fall_asleep(wanted.level, timeout)

    @app.post("/admin/wake", responses=_REFUSALS | _BUSY)
    async def wake() -> SleepState:
        service.loaded()
        return await service.sleep.wake()


async def liveness(service: Service) -> Verdict:
    """The engine's verdict; a bad one is only believed when it stands after waiting messages were read."""
    verdict = service.engine.heartbeat.judge(time.monotonic())
    if not verdict.alive:
        await asyncio.sleep(CATCH_UP_S)
        verdict = service.engine.heartbeat.judge(time.monotonic())
    if service.engine.failure is not None:
        return Verdict(alive=False, heartbeat_age_s=verdict.heartbeat_age_s, message=service.engine.failure.message)
    return verdict


def not_ready_because(service: Service) -> str:
    """Why no traffic should come; empty when it should."""
    if service.engine.failure is not None:
        return f"the engine ended: {service.engine.failure.message}"
    if service.ready is None:
        return "loading"
    if service.lifecycle.draining:
        return "draining"
    if service.sleep.level:
        return "asleep"
    verdict = service.engine.heartbeat.judge(time.monotonic())
    return "" if verdict.alive else verdict.message


def startup_state(service: Service) -> StartupState:
    failed = service.engine.failure is not None
    return service.clock.state(time.monotonic(), draining=service.lifecycle.draining, failed=failed)


def admin_state(service: Service, now: float) -> AdminState:
    """Everything the operator plans with. `inflight` counts client requests, `waiting` and `running` sequences."""
    stats, ready = service.engine.stats, service.ready
    return AdminState(
        boot_id=service.lifecycle.boot_id,
        model_digest=ready.model_digest if ready else "",
        tokenizer_digest=service.tokenizer.digest if service.tokenizer is not None else "",
        revision=service.args.revision,
        draining=service.lifecycle.draining,
        inflight=service.lifecycle.inflight,
        waiting=max(stats.waiting, service.engine.waiting),
        running=stats.running,
        kv=_kv_state(service) if ready else None,
        tokens=TokenState(
            queued=max(stats.queued_tokens, service.engine.waiting_tokens),
            prefill_per_s=round(service.rates.prefill_per_s(now), 2),
            prefill_busy=round(service.rates.prefill_busy(now), 4),
            decode_per_s=round(service.rates.decode_per_s(now), 2),
        ),
        latency=LatencyState(
            ttft_p50=service.rates.first_token_quantile(0.5, now),
            ttft_p95=service.rates.first_token_quantile(0.95, now),
        ),
        answers=_answer_state(service, now),
        adapters=list(service.adapters.states()),
        startup=startup_state(service),
        capacity=_capacity(service),
        sleep_level=service.sleep.level,
    )


def _answer_state(service: Service, now: float) -> AnswerState:
    answered, failed = service.rates.answers(now)
    return AnswerState(answered=answered, failed=failed)


def _kv_state(service: Service) -> KVState:
    stats = service.engine.stats
    return KVState(
        block_size=service.ready.block_size if service.ready else 0,
        blocks_total=stats.blocks_total,
        blocks_active=stats.blocks_active,
        blocks_cached=stats.blocks_cached,
        blocks_pinned=stats.blocks_pinned,
        hit_tokens=stats.prefix_hit_tokens,
        query_tokens=stats.prefix_query_tokens,
        value=stats.cache_value,
        tiers=_tier_state(stats.tiers),
    )


def _tier_state(tiers: TierStats) -> TierState | None:
    if not tiers.host_total:
        return None
    return TierState(
        host_blocks_total=tiers.host_total,
        host_blocks_cached=tiers.host_cached,
        disk_blocks_cached=tiers.disk_cached,
        disk_bytes=tiers.disk_bytes,
        disk_state=tiers.disk_state,
        host_hit_tokens=tiers.host_hit_tokens,
        disk_hit_tokens=tiers.disk_hit_tokens,
    )


def _capacity(service: Service) -> CapacityState | None:
    ready, args = service.ready, service.args
    if ready is None:
        return None
    kv_tokens = usable_tokens(ready)
    return CapacityState(
        weights_bytes=ready.weights_bytes,
        kv_bytes_per_token=ready.kv_bytes_per_token,
        kv_tokens=kv_tokens,
        max_concurrent_sequences=min(args.max_num_seqs, kv_tokens // ready.max_model_len),
        max_model_len=ready.max_model_len,
        max_adapters=max(args.max_loras, args.max_cpu_loras or 0) if args.enable_lora else 0,
    )


def usable_tokens(ready: EngineReady) -> int:
    """Tokens that the KV cache holds; one block is the engine's own."""
    return (ready.num_blocks - 1) * ready.block_size


def _probe(state: LivenessState | ReadinessState, *, ok: bool) -> JSONResponse:
    return JSONResponse(state.model_dump(mode="json"), HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)
