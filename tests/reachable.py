"""Everything that can be reached from an object without leaving what it holds.

Attributes (`__dict__`, `__slots__`), closures, defaults, `functools.partial`, bound methods'
`__self__`, weak references, containers, iterators of containers, properties, and what a tensor
brings along (its base, gradient and attributes). Not walked: the variables of modules, classes
other than their attributes, frames and the garbage collector.
"""

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView

import torch
from torch import Tensor

LEAVES = (str, bytes, int, float, complex, bool, type(None), types.ModuleType, torch.device)

SEQUENCES = (list, tuple, set, frozenset, collections.deque, ValuesView, KeysView, ItemsView)


def reachable(*roots: object) -> Iterator[tuple[str, object]]:
    """Each object once, with the path that leads to it."""
    queue = collections.deque((type(root).__name__, root) for root in roots)
    seen: dict[int, object] = {}
    while queue:
        path, value = queue.popleft()
        if id(value) in seen or isinstance(value, LEAVES):
            continue
        seen[id(value)] = value
        yield path, value
        queue.extend((path + step, child) for step, child in _children(value))


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, type):
        if value.__module__.startswith(("robustdd", "test_", "small_")):
            yield from ((f".{key}", child) for key, child in vars(value).items())
        return
    if isinstance(value, Mapping):
        for key, child in list(value.items()):
            yield from ((".key", key), (f"[{key!r}]", child))
    elif isinstance(value, SEQUENCES):
        yield from ((f"[{place}]", child) for place, child in enumerate(list(value)))
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f".<{name}>", cell.cell_contents
            except ValueError:  # not bound yet
                continue
        yield ".__defaults__", value.__defaults__
        yield ".__kwdefaults__", value.__kwdefaults__
    if isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    if isinstance(value, weakref.ReferenceType):
        yield "()", value()
    for name in ("__self__", "__func__", "__wrapped__", "fget", "fset"):
        if (child := _attribute(value, name)) is not None:
            yield f".{name}", child
    yield from ((f".{key}", child) for key, child in _attribute(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if (child := _attribute(value, name)) is not None:
                yield f".{name}", child
        if kind.__module__.startswith(("robustdd", "test_", "small_")):
            for name, member in vars(kind).items():
                if isinstance(member, property | functools.cached_property):
                    yield f".{name}", _attribute(value, name)
    if isinstance(value, Tensor):
        yield from ((f".{name}", _attribute(value, name)) for name in ("_base", "grad", "grad_fn"))


def _attribute(value: object, name: str, default: object = None) -> object:
    try:
        return object.__getattribute__(value, name)
    except Exception:  # whatever a property raises
        return default


def tensors(found: Iterable[tuple[str, object]]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor as long as its memory: a view leads to all of what it is a view of."""
    for path, value in found:
        if isinstance(value, Tensor):
            whole = torch.empty(0, dtype=value.dtype, device=value.device)
            with torch.no_grad():
                yield path, whole.set_(value.untyped_storage())
        elif type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
            yield path, torch.from_numpy(value.copy()).flatten()


def holds_rows(memory: Tensor, rows: Tensor) -> bool:
    """Whether any of some rows (n,d) lies in a flat memory, as pixels in [0,1] or as bytes."""
    if memory.numel() < rows.shape[1]:
        return False
    flat = memory.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0).clamp(-1e3, 1e3)
    squares = flat.square().cumsum(0)
    size = rows.shape[1]
    lengths = squares[size - 1 :] - torch.cat([squares.new_zeros(1), squares[:-size]])
    for scale in (1.0, 255.0):
        wanted = rows.double() * scale
        products = torch.nn.functional.conv1d(flat[None, None], wanted[:, None])[0]
        distances = lengths - 2 * products + wanted.square().sum(1, keepdim=True)
        if bool((distances < 1e-4 * scale).any()):
            return True
    return False
