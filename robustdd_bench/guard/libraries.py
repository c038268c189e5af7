"""What a plugin may change in torch, numpy and matplotlib."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from robustdd_bench.guard.process import (
    _never,
    _other_objects,
    logging_settings,
    process_settings,
    random_settings,
)
from robustdd_bench.guard.settings import Setting, arrow, silent


@cache
def numpy_settings() -> Sequence[Setting]:
    """Those of numpy."""
    import numpy as np

    return [
        Setting("numpy's errstate", np.geterr, lambda value: np.seterr(**value), show=_keys),
        Setting("numpy's error callback", np.geterrcall, np.seterrcall, show=silent),
        Setting(
            "numpy's print options",
            np.get_printoptions,
            lambda value: np.set_printoptions(**value),
            show=_keys,
        ),
        Setting("numpy's buffer size", np.getbufsize, np.setbufsize),
        Setting(
            "numpy's global generator",
            np.random.get_state,
            np.random.set_state,
            differs=lambda a, b: a[2:] != b[2:] or a[1].tobytes() != b[1].tobytes(),
            named=_never,
        ),
    ]


def _keys(before: Any, after: Any) -> str:
    changed = [key for key in before if before[key] != after.get(key)]
    return ", ".join(f"{key}: {before[key]} -> {after.get(key)}" for key in changed[:3])


@cache
def matplotlib_settings() -> Sequence[Setting]:
    """Those of matplotlib. Its backend is chosen when a figure is first asked for."""
    import matplotlib as mpl

    params: Any = mpl.rcParams

    def read() -> dict[str, Any]:
        return dict(dict.items(params))

    def write(before: dict[str, Any]) -> None:
        for key in dict.keys(params) - before.keys():
            dict.__delitem__(params, key)
        dict.update(params, before)

    def differs(before: dict[str, Any], after: dict[str, Any]) -> bool:
        return before != after and bool(changed(before, after))

    def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        unset = not isinstance(before.get("backend"), str)
        return [
            key
            for key in before.keys() | after.keys()
            if not (unset and key == "backend")
            and before.get(key) is not after.get(key)
            and before.get(key) != after.get(key)
        ]

    def show(before: dict[str, Any], after: dict[str, Any]) -> str:
        return ", ".join(sorted(changed(before, after))[:5])

    return [Setting("matplotlib's rcParams", read, write, differs=differs, show=show)]


@cache
def torch_settings() -> Sequence[Setting]:
    """Those of torch. Modes come first: under some of them the others cannot be read."""
    import torch
    from torch.utils import deterministic

    core: Any = torch._C
    backends: Any = torch.backends
    tensor_text: Any = sys.modules["torch._tensor_str"]
    options = tensor_text.PRINT_OPTS
    settings = [
        Setting("torch's inference mode", torch.is_inference_mode_enabled, _leave_inference),
        Setting("torch's gradient mode", torch.is_grad_enabled, core._set_grad_enabled),
        Setting(
            "torch's default device",
            _devices,
            _set_devices,
            differs=lambda a, b: a[0] is not b[0] or a[1:3] != b[1:3] or _other_stack(a[3], b[3]),
            show=lambda a, b: arrow(a[1] or a[2], b[1] or b[2]) if a[1:3] != b[1:3] else "",
        ),
        Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        Setting(
            "torch's number of threads between operations",
            torch.get_num_interop_threads,
            torch.set_num_interop_threads,
        ),
        Setting(
            "torch's deterministic algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        _attribute(deterministic, "fill_uninitialized_memory", "torch's filling of new memory"),
        Setting(
            "torch's precision of float32 products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        Setting("torch's flushing of denormal numbers", _flushes, torch.set_flush_denormal),
        *_autocast(),
        Setting(
            "torch's anomaly mode",
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: core.set_anomaly_enabled(*value),
        ),
        Setting(
            "torch's threads of the backward pass",
            core._is_multithreading_enabled,
            core._set_multithreading_enabled,
        ),
        Setting("torch's repeated warnings", torch.is_warn_always_enabled, torch.set_warn_always),
        Setting(
            "torch's print options",
            lambda: dict(vars(options)),
            lambda value: vars(options).update(value),
            show=_keys,
        ),
        Setting("hooks on all networks", _hooks, _set_hooks, differs=_hooks_differ, show=silent),
        Setting(
            "torch's global generator",
            torch.random.get_rng_state,
            torch.random.set_rng_state,
            differs=lambda a, b: not torch.equal(a, b),
            named=_never,
        ),
        Setting(
            "the GPU's global generator",
            _gpu_generators,
            torch.cuda.set_rng_state_all,
            differs=lambda a, b: any(not torch.equal(x, y) for x, y in zip(a, b, strict=True)),
            named=_never,
        ),
        Setting("the current GPU", _gpu, torch.cuda.set_device),
    ]
    flags = {
        "cudnn.enabled": (backends.cudnn, "enabled"),
        "cudnn.benchmark": (backends.cudnn, "benchmark"),
        "cudnn.benchmark_limit": (backends.cudnn, "benchmark_limit"),
        "cudnn.deterministic": (backends.cudnn, "deterministic"),
        "cudnn.allow_tf32": (backends.cudnn, "allow_tf32"),
        "cuda.matmul.allow_tf32": (backends.cuda.matmul, "allow_tf32"),
        "cuda.matmul.allow_fp16_reduced_precision_reduction": (
            backends.cuda.matmul,
            "allow_fp16_reduced_precision_reduction",
        ),
        "cuda.matmul.allow_bf16_reduced_precision_reduction": (
            backends.cuda.matmul,
            "allow_bf16_reduced_precision_reduction",
        ),
        "mkldnn.enabled": (core, "_get_mkldnn_enabled", "_set_mkldnn_enabled"),
        "mkldnn.deterministic": (core, "_get_mkldnn_deterministic", "_set_mkldnn_deterministic"),
        "nnpack.enabled": (core, "_get_nnpack_enabled", "_set_nnpack_enabled"),
        "flash attention": (core, "_get_flash_sdp_enabled", "_set_sdp_use_flash"),
        "memory-efficient attention": (
            core,
            "_get_mem_efficient_sdp_enabled",
            "_set_sdp_use_mem_efficient",
        ),
        "plain attention": (core, "_get_math_sdp_enabled", "_set_sdp_use_math"),
    }
    for name, (holder, *access) in flags.items():
        if len(access) == 1:
            settings.append(_attribute(holder, access[0], f"torch's {name}"))
        elif all(hasattr(holder, each) for each in access):
            settings.append(
                Setting(f"torch's {name}", getattr(holder, access[0]), getattr(holder, access[1]))
            )
    return [*settings, *_precisions(core)]  # last: the switches above write these


def _attribute(holder: Any, attribute: str, name: str) -> Setting:
    return Setting(
        name,
        lambda: getattr(holder, attribute),
        lambda value: setattr(holder, attribute, value),
    )


_KEPT: list[Any] = []
"""Guards that must not be thrown away: torch would undo them."""


def _leave_inference(before: bool) -> None:
    import torch

    mode = torch.inference_mode(before)
    mode.__enter__()
    _KEPT.append(mode)


def _devices() -> tuple[Any, Any, Any, list[Any]]:
    """The default device, and the modes that change what functions of torch do.

    They go together: a default device is such a mode, and so is `with torch.device("cuda"):`.
    """
    core: Any = torch_core()
    holder: Any = sys.modules["torch"]._GLOBAL_DEVICE_CONTEXT
    current = getattr(sys.modules.get("torch.utils._device"), "CURRENT_DEVICE", None)
    stack = [core._get_function_stack_at(i) for i in range(core._len_torch_function_stack())]
    return getattr(holder, "device_context", None), current, core._get_default_device(), stack


def _other_stack(before: list[Any], after: list[Any]) -> bool:
    return len(before) != len(after) or _other_objects(before, after)


def _set_devices(before: tuple[Any, Any, Any, list[Any]]) -> None:
    torch: Any = sys.modules["torch"]
    core: Any = torch_core()
    for _ in range(core._len_torch_function_stack()):
        core._pop_torch_function_stack()
    for mode in before[3]:
        core._push_on_torch_function_stack(mode)
    torch._GLOBAL_DEVICE_CONTEXT.device_context = before[0]
    if "torch.utils._device" in sys.modules:
        sys.modules["torch.utils._device"].CURRENT_DEVICE = before[1]  # type: ignore[attr-defined]
    if core._get_default_device() != before[2]:
        dtype = torch.get_default_dtype()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this function is deprecated, and the only way back
            torch.set_default_tensor_type("torch.FloatTensor")
        torch.set_default_dtype(dtype)


def torch_core() -> Any:
    """The functions below torch's own."""
    return sys.modules["torch"]._C


_SMALLEST, _ONE = 5e-324, 1.0


def _flushes() -> bool:
    """Whether this thread rounds denormal numbers to 0; torch sets that and does not tell it."""
    return _SMALLEST * _ONE == 0.0


def _precisions(core: Any) -> list[Setting]:
    """The arithmetic of float32 by backend and operation, where torch has it so (2.9 and later).

    "none" means "as the backend, and there float32", so a change between "none" and "ieee" is
    undone and not worth a word: torch itself writes "ieee" where allow_tf32 is put back.
    """
    if not hasattr(core, "_get_fp32_precision_getter"):
        return []
    keys = [("generic", "all")]
    keys += [(b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")]

    def setting(backend: str, operation: str) -> Setting:
        return Setting(
            f"torch's arithmetic of float32 ({backend}, {operation})",
            lambda: core._get_fp32_precision_getter(backend, operation),
            lambda value: core._set_fp32_precision_setter(backend, operation, value),
            named=lambda before, after: {before, after} != {"none", "ieee"},
        )

    return [setting(*key) for key in keys]


def _autocast() -> list[Setting]:
    import torch

    def setting(kind: str) -> Setting:
        def write(value: Any) -> None:
            torch.set_autocast_enabled(kind, value[0])
            torch.set_autocast_dtype(kind, value[1])

        return Setting(
            f"torch's autocast on the {kind.upper()}",
            lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
            write,
        )

    cached = Setting(
        "torch's cache of autocast",
        torch.is_autocast_cache_enabled,
        torch.set_autocast_cache_enabled,
    )
    return [setting("cpu"), setting("cuda"), cached]


@cache
def _hook_holders() -> list[Any]:
    """The dictionaries of hooks that torch runs for every network and optimiser."""
    import torch
    from torch.optim import optimizer

    modules: Any = torch.nn.modules.module
    return [
        holder
        for place in (modules, optimizer)
        for name, holder in vars(place).items()
        if name.startswith("_global_") and isinstance(holder, dict)
    ]


def _hooks() -> tuple[Any, list[dict[Any, Any]]]:
    import torch

    whole = torch.nn.modules.module._global_is_full_backward_hook
    return whole, [dict(holder) for holder in _hook_holders()]


def _hooks_differ(before: Any, after: Any) -> bool:
    return any(
        a.keys() != b.keys() or _other_objects(list(a.values()), list(b.values()))
        for a, b in zip(before[1], after[1], strict=True)
    )


def _set_hooks(before: tuple[Any, list[dict[Any, Any]]]) -> None:
    import torch

    torch.nn.modules.module._global_is_full_backward_hook = before[0]
    for holder, content in zip(_hook_holders(), before[1], strict=True):
        holder.clear()
        holder.update(content)


def _gpu_generators() -> Any:
    import torch

    if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        raise RuntimeError("no GPU is in use")
    return torch.cuda.get_rng_state_all()


def _gpu() -> int:
    import torch

    if not torch.cuda.is_initialized():
        raise RuntimeError("no GPU is in use")
    return torch.cuda.current_device()


GROUPS: dict[str, Callable[[], Sequence[Setting]]] = {
    "": process_settings,
    "random": random_settings,
    "logging": logging_settings,
    "numpy": numpy_settings,
    "torch": torch_settings,
    "matplotlib": matplotlib_settings,
}
"""Settings by the module that has to be loaded for them."""
