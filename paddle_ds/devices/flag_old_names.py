"""Names of memory flags and functions from documents of Paddle 1.x and 2.x, and what became of them. No paddle."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class OldName:
    """A name from older documents. ``replacement`` is empty where nothing replaces it."""

    name: str
    replacement: str
    reason: str


_FREED = "executors free temporaries by themselves"
_SAME_ALLOCATOR = "temporaries come from the same allocator as everything"
_UNREAD = "the attribute is there, and nothing reads it"
_GONE = "its executor is gone"
OLD_NAMES: tuple[OldName, ...] = (
    OldName("FLAGS_enable_memory_optim", "inference_memory_optim", "never a flag, but a method of Paddle Inference's Config"),
    OldName("paddle.fluid.memory_optimize", "FLAGS_eager_delete_tensor_gb", _FREED),
    OldName("paddle.fluid.release_memory", "FLAGS_eager_delete_tensor_gb", _FREED),
    OldName("paddle.fluid.transpiler.memory_optimize", "FLAGS_eager_delete_tensor_gb", _FREED),
    OldName("paddle.fluid.transpiler.release_memory", "FLAGS_eager_delete_tensor_gb", _FREED),
    OldName("BuildStrategy.memory_optimize", "FLAGS_eager_delete_tensor_gb", _UNREAD),
    OldName("BuildStrategy.enable_inplace", "FLAGS_pir_apply_inplace_pass", _UNREAD),
    OldName("FLAGS_limit_of_tmp_allocation", "FLAGS_allocator_strategy", _SAME_ALLOCATOR),
    OldName("FLAGS_times_excess_than_required_tmp_allocation", "FLAGS_allocator_strategy", _SAME_ALLOCATOR),
    OldName("FLAGS_enable_inplace_whitelist", "FLAGS_pir_apply_inplace_pass", "the executor decides for each operator"),
    OldName("FLAGS_use_ngraph", "FLAGS_use_onednn", "nGraph is gone"),
    OldName("FLAGS_memory_optimize_debug", "", "it belonged to memory_optimize of paddle.fluid"),
    OldName("FLAGS_enable_parallel_graph", "", _GONE),
    OldName("FLAGS_use_standalone_executor", "", "there is no other executor any more"),
    OldName("FLAGS_USE_STANDALONE_EXECUTOR", "", "there is no other executor any more"),
    OldName("FLAGS_enable_eager_mode", "", "there is no other mode outside of static programs any more"),
    OldName("FLAGS_max_body_size", "", "it belonged to the parameter server of old"),
    OldName("FLAGS_cpu_deterministic", "", _GONE),
    OldName("FLAGS_pe_profile_fname", "", _GONE),
    OldName("FLAGS_use_cuda", "device", "a device is chosen by the engine's setting, not by a flag"),
    OldName("FLAGS_num_threads", "num_threads", "the engine's setting becomes OMP_NUM_THREADS, which decides"),
)
_MOVED = "removed with Paddle 2.5; what lives on is in paddle, paddle.nn and paddle.static"
#: what remains of ``paddle.fluid``, for any name below it that is not above
FLUID = OldName("paddle.fluid", "paddle.static", _MOVED)
#: flags that builds for CUDA and ROCm alone have
GPU_ONLY = frozenset(
    {
        "FLAGS_conv_workspace_size_limit",
        "FLAGS_conv2d_disable_cudnn",
        "FLAGS_cublaslt_exhaustive_search_times",
        "FLAGS_cudnn_batchnorm_spatial_persistent",
        "FLAGS_cudnn_deterministic",
        "FLAGS_cudnn_exhaustive_search",
        "FLAGS_cudnn_exhaustive_search_times",
        "FLAGS_embedding_deterministic",
        "FLAGS_enable_cublas_tensor_op_math",
        "FLAGS_gemm_use_half_precision_compute_type",
        "FLAGS_selected_gpus",
        "FLAGS_sync_nccl_allreduce",
    }
)
