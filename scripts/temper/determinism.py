"""What decides the bits of a computation besides its inputs, and how a stage sets it: never the user's shell.

`machine`: equal bytes on one machine, at full speed. `portable`: equal bytes on other types of CPU too, for which sums
must be made in one order everywhere: float32, MKL's compatible mode, one thread, and no wider vectors than AVX2
(docs/reproducibility.md). On a GPU it asks for deterministic algorithms; other types of GPU may still differ.
"""

from __future__ import annotations

from typing import Any

# Each changes results or the order of sums; a stage's program never inherits them. Containers do not have them anyway.
NOT_INHERITED = (
    *("MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "MKL_THREADING_LAYER"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_DEFAULT_FPMATH_MODE", "OMP_DYNAMIC", "OMP_SCHEDULE", "OMP_THREAD_LIMIT", "TORCH_CPU_ALLOW_TF32"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("TORCH_BLAS_PREFER_CUBLASLT", "NCCL_ALGO", "NCCL_PROTO", "FLASH_ATTENTION_DETERMINISTIC"),
)
# One thread: in its compatible mode MKL's products of odd sizes change with the number of threads (docs/log.md). Its
# modes that are strict about threads (AVX2,STRICT) are for Intel's processors only.
CPU = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
GPU = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NVIDIA_TF32_OVERRIDE": "0",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
}


def portable(config: dict[str, Any]) -> bool:
    """Say whether results are to be the same on other machines too."""
    return bool(config["determinism"] == "portable")


def variables(config: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a stage's program, beyond child.QUIET."""
    if portable(config):
        return {**CPU, **GPU} if config["gpu"] else CPU
    return {} if config["gpu"] else _any_threads()


def _any_threads() -> dict[str, str]:
    """Return what makes the number of threads change no byte: no wider vectors than LLaMA Factory's batches fill.

    PyTorch's softmax goes back in pieces that follow the threads where a row does not fill its vectors; rows are padded
    to 8 tokens, AVX-512 takes 16. It costs nothing that could be measured (docs/log.md).
    """
    from temper.train import machine

    return {"ATEN_CPU_CAPABILITY": CPU["ATEN_CPU_CAPABILITY"]} if "avx2" in machine.cpu_flags() else {}


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return LLaMA Factory's arguments that go with it."""
    if not portable(config):
        return {}
    if config["gpu"]:
        # Eager attention: the fused kernels add up a backward pass in whatever order their blocks end.
        return {"full_determinism": True, "flash_attn": "disabled"}
    # The unfused AdamW takes square roots by the vendor's vector code (docs/log.md).
    return {"bf16": False, "fp16": False, "optim": "adamw_torch_fused"}


def section(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a stage's result then follows from: nothing more on one machine, so that its results stay current."""
    return {"determinism": config["determinism"]} if portable(config) else {}
