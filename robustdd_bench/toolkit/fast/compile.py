"""Compiled kernels: in C++ for a CPU, compiled on the user's machine, and in Triton for a GPU.

The networks of this field are small: on a CPU their norms, ReLUs and poolings take about as long
as their convolutions, since each of torch's kernels reads and writes whole tensors. `kernels.cpp`
does the three in one pass (see `robustdd_bench.toolkit.fast.blocks`, which says what is computed),
and the convolutions of grey images.

A C++ compiler makes a library of it in a few seconds, for the processor at hand. It is kept
in the user's cache under a name with a hash of the source, the compiler's options and the
processor, so other workers, runs and days find it. Where there is no compiler, or it fails,
networks compute with torch's kernels; the reason is told in one line.

On a GPU Triton compiles `robustdd_bench.toolkit.fast.triton_kernels`; it is installed with torch.

The compiler is the one that CXX names, else g++, clang++ or c++. ROBUSTDD_CACHE names the folder of
the cache, else XDG_CACHE_HOME or ~/.cache (on macOS ~/Library/Caches) has it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustdd_bench.files import file_sha256
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.fast.capture import TOLERANCE, Availability

CACHE = "ROBUSTDD_CACHE"
SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")
BASE = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)
TUNING = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
"""Tried one after the other: not every compiler knows its processor or has OpenMP."""
TIMEOUT_S = 120
SAMPLE = 16
"""Images on which kernels are held against torch's, where a whole batch would cost a step."""
ROUNDING = 1e-5
"""By how much of the largest tensor of a step any of its tensors may be off."""
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_POINTER, _COUNT, _NUMBER, _FLAG = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_double,
    ctypes.c_int,
)
_SHAPE = (_COUNT,) * 4
_ARGUMENTS = {
    "forward": (*(_POINTER,) * 6, *_SHAPE, _NUMBER, *(_FLAG,) * 3),
    "backward": (*(_POINTER,) * 9, *_SHAPE, *(_FLAG,) * 3),
    "second": (*(_POINTER,) * 12, *_SHAPE, *(_FLAG,) * 3),
    "convolve": (*(_POINTER,) * 4, *_SHAPE, _FLAG),
    "convolve_back": (*(_POINTER,) * 3, *_SHAPE, _FLAG),
}


class CompilerError(Exception):
    """No library can be had; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions of the library, for each dtype; see kernels.cpp for their arguments."""

    path: Path
    functions: dict[tuple[str, torch.dtype], Callable[..., None]]

    def __call__(self, name: str, tensors: Sequence[Tensor | None], *numbers: float) -> None:
        """Call `name` on contiguous tensors of one dtype, and the numbers that follow them."""
        first = tensors[0]
        assert first is not None
        self.functions[name, first.dtype](
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            *numbers,
            torch.get_num_threads(),
        )


def availability(device: torch.device) -> Availability:
    """Whether networks on a device can compute with compiled kernels, and why not.

    The first call in a process loads the library, and compiles it where no earlier one did.
    """
    if device.type == "cuda":
        reason = _no_triton()
        return Availability(reason is None, reason or "Triton kernels")
    if device.type != "cpu":
        return Availability(False, f"there are no compiled kernels for {device.type}")
    found = _found()
    if isinstance(found, str):
        return Availability(False, found)
    return Availability(True, f"C++ kernels ({found.path.name})")


def kernels(device: torch.device) -> Callable[..., None]:
    """The compiled kernels for tensors on a device; called as `Kernels` are.

    Raises:
        CompilerError: there are none on this machine.
    """
    if device.type == "cuda":
        from robustdd_bench.toolkit.fast import triton_kernels

        return triton_kernels.call
    found = _found()
    if isinstance(found, str):
        raise CompilerError(found)
    return found


def plain(x: Tensor) -> bool:
    """Whether kernels can take a tensor: plain data, with no transform of functions around."""
    return (
        (x.device.type == "cpu" or (x.device.type == "cuda" and _no_triton() is None))
        and x.dtype in DTYPES
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def fits(x: Tensor, pooled: bool) -> bool:
    """Whether kernels compute images (B,C,H,W) of a size: those of a GPU not all (see there)."""
    if x.device.type == "cpu":
        return True
    from robustdd_bench.toolkit.fast import triton_kernels

    return triton_kernels.fits(x.shape[2], x.shape[3], pooled)


def trusted(
    compiled: Callable[[], Sequence[Tensor]],
    eager: Callable[[], Sequence[Tensor]],
    note: Callable[[str], object],
) -> bool:
    """Whether compiled kernels do what torch's do, on the first thing they are to compute.

    Both draw the same from the global generator, which is left as it was: a network may have
    dropout, and a run that is gone on with holds its kernels once more.

    Args:
        compiled: computes it with compiled kernels.
        eager: computes it without.
        note: told, in one line, what is wrong.
    """
    found, expected = (_values(compute) for compute in (compiled, eager))
    sizes = [float(tensor.norm()) for tensor in expected]
    # The gradient of a bias before a norm is nothing but rounding, of the size of other gradients.
    rounding = ROUNDING * max((size for size in sizes if math.isfinite(size)), default=0.0)
    for i, (one, other, size) in enumerate(zip(found, expected, sizes, strict=True)):
        apart = float((one - other).norm())
        if not math.isfinite(size) or apart <= TOLERANCE * size + rounding:
            continue
        note(
            f"compiled kernels are not used: tensor {i} of the first step is off by {apart:.1e} of "
            f"{size:.1e}; steps run eagerly"
        )
        return False
    return True


def _values(compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
    with isolated_rng(0):
        return [tensor.detach().double() for tensor in compute()]


@functools.cache
def _no_triton() -> str | None:
    """Why there are no kernels for a GPU; None if there are."""
    if importlib.util.find_spec("triton") is None:
        return "compiled kernels for a GPU need Triton; install it with: pip install triton"
    if not torch.cuda.is_available():
        return "no GPU is found"
    if torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability()
        if major < 7:
            return f"Triton needs compute capability 7.0, and this GPU has {major}.{minor}"
    return None


@functools.cache
def _found() -> Kernels | str:
    """The kernels, or why there are none; looked for once a process."""
    try:
        return _load(_library())
    except CompilerError as error:
        return str(error)


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "robustdd-bench"
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root).absolute() if root else Path.home() / ".cache") / "robustdd-bench"


def _library() -> Path:
    """The path of a library for this processor, which is made where it is not there."""
    key = hashlib.sha256(SOURCE.read_bytes())
    for fact in (*BASE, *map(str, TUNING), platform.system(), _processor(), _named_compiler()):
        key.update(f"\n{fact}".encode())
    stem = f"kernels-{key.hexdigest()[:16]}"
    try:
        folder = cache_folder()
        for path in sorted(folder.glob(f"{stem}-*.so")):
            # Half a library, as of a power cut, would end the process when it is loaded.
            if path.name == _name(stem, path):
                return path
        folder.mkdir(parents=True, exist_ok=True)
        return _compile(folder, stem)
    except (OSError, RuntimeError):  # read-only, full, or there is no home
        return _compile(Path(tempfile.mkdtemp(prefix="robustdd-")), stem)


def _name(stem: str, library: Path) -> str:
    return f"{stem}-{file_sha256(library)[:16]}.so"


def _processor() -> str:
    """What the processor can do: a library for another one may end the process."""
    facts = [platform.machine()]
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                facts.append(line)
            elif not line:
                break
    except OSError:
        facts.append(platform.processor())
    return "\n".join(facts)


def _named_compiler() -> str:
    return os.environ.get("CXX", "")


def _compiler() -> list[str]:
    """The command of the C++ compiler.

    Raises:
        CompilerError: there is none.
    """
    named = _named_compiler()
    if named:
        words = shlex.split(named)
        if not words or shutil.which(words[0]) is None:
            raise CompilerError(f"no C++ compiler: CXX={named!r} is not found; mend or unset CXX")
        return words
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise CompilerError("no C++ compiler is found; install g++ or clang++, or set CXX to one")


def _compile(folder: Path, stem: str) -> Path:
    """Make the library in a folder; a process that does the same at the same time does no harm."""
    compiler = _compiler()
    said = ""
    descriptor, made = tempfile.mkstemp(prefix=f".{stem}.", dir=folder)
    os.close(descriptor)
    try:
        for tuning in TUNING:
            command = [*compiler, *BASE, *tuning, str(SOURCE), "-o", made]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace",
                    timeout=TIMEOUT_S, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CompilerError(f"the C++ compiler {compiler[0]!r} fails: {error}") from error
            if done.returncode == 0:
                path = folder / _name(stem, Path(made))
                os.replace(made, path)
                return path
            said = said or next((s for s in done.stderr.splitlines() if "error" in s), "")
    finally:
        Path(made).unlink(missing_ok=True)
    reason = " ".join(said.split())[:200] or f"exit code {done.returncode}"
    raise CompilerError(f"the C++ compiler {compiler[0]!r} fails: {reason}")


def _load(path: Path) -> Kernels:
    try:
        library = ctypes.CDLL(str(path))
        functions = {}
        for name, arguments in _ARGUMENTS.items():
            for dtype, suffix in DTYPES.items():
                function = getattr(library, f"{name}_{suffix}")
                function.argtypes, function.restype = arguments, None
                functions[name, dtype] = function
    except (OSError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise CompilerError(
            f"the compiled library cannot be loaded: {text}; delete {path} or set {CACHE}"
        ) from error
    return Kernels(path, functions)
