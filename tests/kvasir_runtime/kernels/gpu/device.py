"""Where the GPU kernels are tested: compiled on a GPU where there is one, else interpreted on the CPU."""

from typing import Any, Final

import torch

from kvasir_runtime.kernels.gpu.numerics import INTERPRETED

DEVICE: Final = torch.device("cpu" if INTERPRETED.value else "cuda")

TOLERANCE: Final[dict[torch.dtype, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def patch_the_language_once() -> None:
    """Let a kernel's inner functions run in the language that is patched for the kernel itself.

    The interpreter would patch all of it again for each call of one, which takes 2.5 ms: most of a kernel's time.
    """
    from triton import language
    from triton.runtime import interpreter

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        modules = [value for value in self.fn.__globals__.values() if value in (language, language.core)]
        if any(language.core.is_builtin(module.load) for module in modules):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


if INTERPRETED.value:
    patch_the_language_once()
