"""Attention on NVIDIA GPUs by the Triton kernels. Shape suffixes: see `attention.backend`."""

from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec
from kvasir_runtime.kernels.gpu.decode_attention import SplitPlan, decode_attention, plan_splits
from kvasir_runtime.kernels.gpu.prefill_attention import prefill_attention
from kvasir_runtime.kernels.gpu.rope_kv import rope_and_write


class TritonBackend:
    """For float32, bfloat16 and float16; even head dimensions up to 256; caches in the model's dtype, int8 and fp8."""

    name = "triton"

    def __init__(self) -> None:
        self._step: AttentionMetadata | None = None
        self._plans: dict[tuple[int | None, int], SplitPlan] = {}

    def write_kv(
        self, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor, cos_sin_LC: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> Tensor:
        return rope_and_write(q_THC, k_TKC, v_TKC, cos_sin_LC, kv_2BKSC, step.positions_T, step.slots_T)

    def decode(self, q_NHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        return decode_attention(q_NHC, kv_2BKSC, step.decodes, spec, self._plan(spec, step))

    def prefill(self, q_PHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        return prefill_attention(q_PHC, kv_2BKSC, step.prefills, step.starts_P, spec)

    def _plan(self, spec: AttentionSpec, step: AttentionMetadata) -> SplitPlan:
        """How the step's decode rows are cut: once for all layers with the same window."""
        if self._step is not step:
            self._step, self._plans = step, {}
        key = (spec.window, spec.num_kv_heads)
        if key not in self._plans:
            self._plans[key] = plan_splits(step.decodes, spec)
        return self._plans[key]
