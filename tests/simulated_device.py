"""A CUDA device made of CPU memory, for machines without one.

Code that is given `torch.device("cuda")` computes on tensors that say they lie there. Their values
are those of the CPU, bit for bit, so a run can be held against the same run on the CPU. What a GPU
would refuse is refused: operations on tensors of two devices, a generator of the other device. What
it would wait for is counted (`syncs`), as are copies to it and
kernels (`copies`, `launches`: each operation that is not a view is one).

CUDA graphs are there too. While one is captured nothing is computed: what was written is put back,
and what the capture made is filled with NaN. Waiting, copying to or from the host, a number that
lies on the host, or a generator that was not registered raise, as they do on a GPU. A replay does
the recorded operations again on the recorded memory; memory that was not the graph's own and has
been freed since raises, where a GPU would read garbage.

What it does not tell: whether a kernel exists, its speed, its rounding, its memory.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from robustdd_bench.toolkit.fast import compile as compile_module

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
Generator = torch.Generator
WAITS = {
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
}
"""Operations whose result the host needs before it goes on."""
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operations that wait if they are given a mask."""


def _leaves(tree: Any) -> list[Any]:
    """What lies in tuples, lists and dictionaries. (PyTorch's own trees cost most of the time.)"""
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in _leaves(branch)]
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in _leaves(branch)]
    return [tree]


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of the same shape with other leaves."""
    if type(tree) in (tuple, list):
        return type(tree)([_mapped(function, branch) for branch in tree])
    if type(tree) is dict:
        return {key: _mapped(function, branch) for key, branch in tree.items()}
    return function(tree)


class OnDevice(Tensor):
    """A tensor that says it lies on the device; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=inner.device,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    def __deepcopy__(self, memo: Any) -> OnDevice:
        copied = OnDevice(self.inner.clone())
        if getattr(self, "_is_param", False):
            copied._is_param = True
        return copied.requires_grad_(self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a tensor of a simulated device that is gone")


class OnDeviceGenerator(Generator):
    """A generator of either device; its numbers are the CPU's."""

    made: ClassVar[weakref.WeakValueDictionary[int, OnDeviceGenerator]] = (
        weakref.WeakValueDictionary()
    )

    def __new__(cls, device: Any = "cpu") -> OnDeviceGenerator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._on_device = torch.device(device).type == "cuda"
        self.made[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return CUDA if self._on_device else torch.device("cpu")

    @classmethod
    def of(cls, generator: Generator) -> Generator:
        """The Python object that an operation's generator was given as."""
        return cls.made.get(generator._cdata, generator)


class Graph:
    """A CUDA graph: operations, and the memory they were recorded on."""

    def __init__(self) -> None:
        self.generators: list[Generator] = []
        self.operations: list[tuple[Any, Any, list[Any]]] = []
        self.replays = 0
        self._own: dict[int, Tensor] = {}
        self._borrowed: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        self._states: list[Tensor] = []

    def register_generator_state(self, generator: Generator) -> None:
        """See `torch.cuda.CUDAGraph`."""
        assert generator.device.type == "cuda"
        self.generators.append(generator)

    def pool(self) -> tuple[int, int]:
        """See `torch.cuda.CUDAGraph`."""
        return (0, id(self))

    def begin(self) -> None:
        """Remember what a capture leaves alone."""
        self._states = [generator.get_state() for generator in self.generators]

    def borrow(self, tensors: list[Tensor]) -> None:
        """Remember memory that is not the graph's own, before an operation reads or writes it."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._borrowed:
                self._borrowed[storage._cdata] = StorageWeakRef(storage), _bytes(storage).clone()

    def record(self, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        """Add an operation that has been done once."""
        for tensor in made:
            key = tensor.untyped_storage()._cdata
            if key not in self._borrowed:
                self._own.setdefault(key, tensor)
        given = _mapped(self._reference, (args, kwargs))
        self.operations.append((func, given, [self._reference(leaf) for leaf in made]))

    def _reference(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        borrowed = self._borrowed.get(leaf.untyped_storage()._cdata)
        if borrowed is None:
            return leaf
        return _Borrowed(borrowed[0], leaf)

    def end(self) -> None:
        """A capture computes nothing."""
        for weak, before in self._borrowed.values():
            _bytes(_alive(weak)).copy_(before)
        for tensor in self._own.values():
            if tensor.is_floating_point():
                _whole(tensor).fill_(torch.nan)
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def replay(self) -> None:
        """Do the operations again."""
        self.replays += 1
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            for func, given, made in self.operations:
                args, kwargs = _mapped(_resolve, given)
                found = _tensors(func(*args, **kwargs))
                for new, old in zip(found, map(_resolve, made), strict=True):
                    if new.untyped_storage()._cdata != old.untyped_storage()._cdata:
                        old.copy_(new)


class _Borrowed:
    """A view of memory that somebody else has to keep."""

    def __init__(self, storage: StorageWeakRef, tensor: Tensor) -> None:
        self.storage, self.dtype = storage, tensor.dtype
        self.view = tensor.storage_offset(), tensor.size(), tensor.stride()


def _alive(weak: StorageWeakRef) -> torch.UntypedStorage:
    storage = torch.UntypedStorage._new_with_weak_ptr(weak.cdata)
    if storage is None:
        raise AssertionError("a graph reads memory that was freed after its capture")
    return storage


def _resolve(leaf: Any) -> Any:
    if isinstance(leaf, _Borrowed):
        return torch.empty(0, dtype=leaf.dtype).set_(_alive(leaf.storage), *leaf.view)
    return leaf


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _whole(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor)]


class Device:
    """What happens on the device."""

    def __init__(self) -> None:
        self.syncs: list[str] = []
        self.copies = 0
        self.launches = 0
        self.graphs: list[Graph] = []
        self.capturing: Graph | None = None
        self.inside = 0
        """How many calls from Python, one in the other, work on the device just now."""

    @property
    def replays(self) -> int:
        """Replays of all graphs."""
        return sum(graph.replays for graph in self.graphs)

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        self.refuse_in_capture(what)
        self.syncs.append(what)

    def refuse_in_capture(self, what: str) -> None:
        """Raise if a graph is being captured."""
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def upload(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the host."""
        if isinstance(tensor, OnDevice):
            return tensor
        self.refuse_in_capture("a copy from the host")
        self.copies += 1
        return OnDevice(tensor.detach().clone())

    def download(self, tensor: Tensor) -> Tensor:
        """A copy on the host."""
        if not isinstance(tensor, OnDevice):
            return tensor
        self.wait("a copy to the host")
        return tensor.inner.clone()

    @contextlib.contextmanager
    def capture(self, graph: Graph, pool: Any = None, stream: Any = None) -> Iterator[None]:
        """See `torch.cuda.graph`."""
        graph.begin()
        self.capturing = graph
        launches = self.launches
        try:
            yield
        finally:
            self.capturing = None
            self.launches = launches
            graph.end()
        self.graphs.append(graph)

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Do one operation of PyTorch's, below autograd."""
        leaves = _leaves((args, kwargs))
        if func.overloadpacket in INDEXED and isinstance(args[0], OnDevice):
            # A GPU takes an index that lies on the host: it is copied.
            args = (args[0], [x if x is None else self.upload(x) for x in args[1]], *args[2:])
            leaves = _leaves((args, kwargs))
        there = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
        if not there and (here or not self.inside):
            self._check_generators(func, leaves, on_device=False)
            return func(*args, **kwargs)
        if here:
            if func.overloadpacket is aten.copy_ and len(there) == len(here) == 1:
                return self._copy(*args)
            if any(x.ndim for x in here):
                raise RuntimeError(f"{func}: expected all tensors on one device, found two")
            self.refuse_in_capture(f"{func} with a number of the host")
        self._check_generators(func, leaves, on_device=True)
        masks = [x for x in there[1:] if x.dtype in (torch.bool, torch.uint8)]
        if func.overloadpacket in WAITS or (func.overloadpacket in INDEXED and masks):
            self.wait(str(func))
        if not func.is_view and func.overloadpacket not in (aten.empty, aten.empty_like):
            self.launches += 1

        same = {id(x.inner): x for x in there}
        args, kwargs = _mapped(_inner, (args, kwargs))
        if self.capturing is not None:
            self.capturing.borrow([x.inner for x in there])
        out = func(*args, **kwargs)
        if self.capturing is not None:
            self.capturing.record(func, args, kwargs, _tensors(out))
        if func.overloadpacket is aten._local_scalar_dense:
            return out
        return _mapped(lambda x: same[id(x)] if id(x) in same else wrap(x), out)

    def _copy(self, target: Tensor, source: Tensor, *_: Any) -> Tensor:
        if isinstance(target, OnDevice):
            self.refuse_in_capture("a copy from the host")
            self.copies += 1
            target.inner.copy_(source)
        else:
            self.wait("a copy to the host")
            target.copy_(source.inner)
        return target

    def _check_generators(self, func: Any, leaves: list[Any], *, on_device: bool) -> None:
        kind = "cuda" if on_device else "cpu"
        given = [OnDeviceGenerator.of(leaf) for leaf in leaves if isinstance(leaf, Generator)]
        for generator in given:
            if generator.device.type != kind:
                raise RuntimeError(f"{func}: expected a generator of {kind}")
            if self.capturing is not None and generator not in self.capturing.generators:
                raise RuntimeError(f"{func}: the generator is not registered with the graph")
        if on_device and not given and _draws(func):
            raise AssertionError(f"{func} draws from the device's global generator")


@functools.cache
def _draws(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


def wrap(leaf: Any) -> Any:
    """A result of an operation, on the device."""
    if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice):
        return OnDevice(leaf)
    return leaf


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Calls(TorchFunctionMode):
    """Calls from Python: what names a device is taken there."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        device, kwargs = self._device, dict(kwargs or {})
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._move(func, args, kwargs)
        there = isinstance(args[0], OnDevice) if args else False
        if there and func is Tensor.tolist:
            return device.download(args[0]).tolist()
        if there and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        asked = _is_cuda(kwargs.get("device"))
        if asked:
            kwargs["device"] = torch.device("cpu")
            if func in (torch.tensor, torch.as_tensor):
                return device.upload(func(*args, **kwargs))
        found = asked or any(isinstance(x, OnDevice) for x in _leaves((args, kwargs)))
        device.inside += found
        try:
            out = func(*args, **kwargs)
        finally:
            device.inside -= found
        return _mapped(wrap, out) if asked else out

    def _move(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, device = args[0], self._device
        if func is Tensor.cuda:
            return device.upload(tensor)
        if func is Tensor.cpu:
            return device.download(tensor)
        rest = list(args[1:])
        target = kwargs.pop("device", None)
        if rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
            target, kwargs["dtype"] = other.device, other.dtype
        elif rest and isinstance(rest[0], str | torch.device):
            target = rest.pop(0)
        elif rest and rest[0] is None:
            rest.pop(0)
        names = ("dtype", "non_blocking", "copy")
        if not rest or not isinstance(rest[0], torch.dtype | None):
            names = names[1:]
        kwargs |= dict(zip(names, rest, strict=False))
        if target is not None:
            tensor = device.upload(tensor) if _is_cuda(target) else device.download(tensor)
        if kwargs.get("dtype") is None and not kwargs.get("copy"):
            return tensor
        found = isinstance(tensor, OnDevice)
        device.inside += found
        try:
            return Tensor.to(tensor, **kwargs)
        finally:
            device.inside -= found


class _Operations(TorchDispatchMode):
    """Operations, below autograd."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # spares the import of the compiler

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._device.operate(func, args, kwargs or {})


class _Stream:
    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass

    def is_capturing(self) -> bool:
        return False


@contextlib.contextmanager
def simulated_gpu() -> Iterator[Device]:
    """A simulated GPU, for `torch.device("cuda")`."""
    device = Device()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(torch, "Generator", OnDeviceGenerator)
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "simulated device",
        "mem_get_info": lambda *_: (2**36, 2**36),
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 2**20,
        "synchronize": lambda *_: device.wait("synchronize"),
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": device.capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(compile_module, "_no_triton", lambda: "Triton knows no simulated device")
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: _Stream())
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Calls(device), _Operations(device):
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        monkeypatch.undo()
