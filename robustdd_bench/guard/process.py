"""What a plugin may change in the interpreter and in the process."""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from robustdd_bench.guard.settings import Setting, silent

LIBRARY_VARIABLES = frozenset(
    {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "CUDA_MODULE_LOADING", "TORCHINDUCTOR_CACHE_DIR"}
    | {"TRITON_CACHE_DIR"}
)
"""Variables that scikit-learn and torch set for themselves when they are first used."""


@cache
def process_settings() -> Sequence[Setting]:
    """Those that are there in every process."""
    found = [
        Setting("the working directory", os.getcwd, os.chdir),
        _attributes(
            os, "os.environ", *(name for name in ("environ", "environb") if hasattr(os, name))
        ),
        Setting(
            "the environment",
            _environment,
            _set_environment,
            differs=lambda a, b: a != b and bool(_changed(a, b) - LIBRARY_VARIABLES),
            show=_variables,
        ),
        Setting("the umask", _umask, os.umask, show=lambda a, b: f"{a:03o} -> {b:03o}"),
        Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), _set_locale),
        Setting(
            "the filters of warnings",
            lambda: (warnings.filters, tuple(warnings.filters)),
            _set_filters,
            differs=lambda a, b: a[0] is not b[0] or a[1] != b[1],
            show=silent,
            named=lambda a, b: _broad(a[1]) != _broad(b[1]),
        ),
        _attributes(warnings, "how warnings are shown", "showwarning", "formatwarning"),
        _attributes(sys, "sys.stderr", "stderr", "__stderr__"),
        _attributes(sys, "sys.stdin", "stdin", "__stdin__"),
        _attributes(sys, "sys.__stdout__", "__stdout__"),
        _contents(sys, "sys.path", "path"),
        _contents(sys, "sys.argv", "argv"),
        _attributes(sys, "sys.excepthook", "excepthook", "unraisablehook", "displayhook"),
        _attributes(threading, "threading.excepthook", "excepthook"),
        Setting("the trace function", sys.gettrace, sys.settrace, show=silent),
        Setting("the profile function", sys.getprofile, sys.setprofile, show=silent),
        Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        Setting("the switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Setting("the limit of digits", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
        Setting("the garbage collector", _collector, _set_collector),
        Setting("the handlers of signals", _handlers, _set_handlers, show=_signals),
        _lazy("decimal", "the context of decimal numbers", _decimal, _set_decimal),
        _lazy(
            "socket",
            "the timeout of sockets",
            lambda module: module.getdefaulttimeout(),
            lambda module, value: module.setdefaulttimeout(value),
        ),
        _lazy(
            "tempfile",
            "the folder for temporary files",
            lambda module: module.tempdir,
            lambda module, value: setattr(module, "tempdir", value),
            named=lambda before, after: before is not None,  # None: not asked for yet
        ),
    ]
    if hasattr(signal, "getitimer"):
        timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
        found.append(
            Setting(
                "a timer of the process",
                lambda: tuple(signal.getitimer(timer)[0] > 0 for timer in timers),
                lambda before: [
                    signal.setitimer(timer, 0)
                    for timer, was in zip(timers, before, strict=True)
                    if not was
                ],
                show=silent,
            )
        )
    if hasattr(os, "sched_getaffinity"):
        found.append(
            Setting(
                "the processors it may use",
                lambda: os.sched_getaffinity(0),
                lambda value: os.sched_setaffinity(0, value),
                show=silent,
            )
        )
    return found


@cache
def random_settings() -> Sequence[Setting]:
    """Those of Python's module `random`."""
    import random

    return [Setting("Python's global generator", random.getstate, random.setstate, named=_never)]


@cache
def logging_settings() -> Sequence[Setting]:
    """Those of Python's module `logging`."""
    return [Setting("logging", _logging, _set_logging, show=silent)]


def _never(before: Any, after: Any) -> bool:
    return False


def _attributes(holder: Any, name: str, *attributes: str) -> Setting:
    """Attributes that hold the same objects as before."""

    def read() -> tuple[Any, ...]:
        return tuple(getattr(holder, attribute, None) for attribute in attributes)

    def write(values: tuple[Any, ...]) -> None:
        for attribute, value in zip(attributes, values, strict=True):
            setattr(holder, attribute, value)

    return Setting(name, read, write, differs=_other_objects, show=silent)


def _other_objects(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return any(a is not b for a, b in zip(before, after, strict=True))


def _contents(holder: Any, name: str, attribute: str) -> Setting:
    """A list: the same object with the same items."""

    def read() -> tuple[Any, tuple[Any, ...]]:
        value = getattr(holder, attribute)
        return value, tuple(value)

    def write(before: tuple[Any, tuple[Any, ...]]) -> None:
        before[0][:] = before[1]
        setattr(holder, attribute, before[0])

    def differs(before: Any, after: Any) -> bool:
        return before[0] is not after[0] or before[1] != after[1]

    return Setting(name, read, write, differs=differs, show=silent)


def _lazy(module: str, name: str, read: Any, write: Any, **more: Any) -> Setting:
    """A setting of a module of the standard library that may not be loaded."""
    return Setting(
        name,
        lambda: read(sys.modules[module]),
        lambda value: write(sys.modules[module], value),
        **more,
    )


# --- environment -----------------------------------------------------------------------------


def _environment() -> dict[Any, Any]:
    # The encoded variables: decoding them all would cost more than all other settings together.
    return dict(getattr(os.environ, "_data", os.environ))


def _changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> set[str]:
    keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    return {os.fsdecode(key) for key in keys}


def _variables(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> str:
    """Names alone: values may be secret."""
    names = sorted(_changed(before, after) - LIBRARY_VARIABLES)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _set_environment(before: Mapping[Any, Any]) -> None:
    names = _changed(before, _environment()) - LIBRARY_VARIABLES
    for name in names:
        key = os.fsencode(name) if os.name == "posix" else name
        value = before.get(key)
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = os.fsdecode(value)
    if "TZ" in names and hasattr(time, "tzset"):
        time.tzset()


# --- the rest --------------------------------------------------------------------------------


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_locale(before: str) -> None:
    locale.setlocale(locale.LC_ALL, before)


def _broad(filters: tuple[Any, ...]) -> list[Any]:
    """Filters that concern everybody's warnings; libraries add others for their own on import."""
    return [
        each
        for each in filters
        if each[1] is None and each[3] is None and each[2].__module__ == "builtins"
    ]


def _set_filters(before: tuple[Any, tuple[Any, ...]]) -> None:
    held, content = before
    held[:] = content
    warnings.filters = held
    # Filters are cached by module; without this call the cache would keep the plugin's.
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if hasattr(warnings, name):
            with contextlib.suppress(Exception):
                getattr(warnings, name)()


def _collector() -> tuple[bool, tuple[int, int, int]]:
    return gc.isenabled(), gc.get_threshold()


def _set_collector(before: tuple[bool, tuple[int, int, int]]) -> None:
    gc.set_threshold(*before[1])
    (gc.enable if before[0] else gc.disable)()


def _logging() -> tuple[Any, ...]:
    import logging

    root = logging.getLogger()
    return root.level, logging.root.manager.disable, tuple(root.handlers), tuple(root.filters)


def _set_logging(before: tuple[Any, ...]) -> None:
    import logging

    root = logging.getLogger()
    root.setLevel(before[0])
    logging.disable(before[1])
    root.handlers[:] = before[2]
    root.filters[:] = before[3]


_SIGNALS = tuple(sorted(signal.valid_signals()))
_NUMBERS = tuple(map(int, _SIGNALS))
_getsignal: Any = vars(signal).get("_signal", signal).getsignal  # without a search in the enum


def _handlers() -> tuple[Any, ...]:
    return tuple(map(_getsignal, _NUMBERS))


def _set_handlers(before: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, before, strict=True):
        # None: set by other code than Python's, which Python cannot set again.
        if handler is not None and _getsignal(int(number)) != handler:
            signal.signal(number, handler)


def _signals(before: Sequence[Any], after: Sequence[Any]) -> str:
    names = []
    for number, one, other in zip(_SIGNALS, before, after, strict=True):
        if one is not other and one != other:
            names.append(getattr(number, "name", str(int(number))))
    return ", ".join(names)


def _decimal(module: Any) -> tuple[Any, ...]:
    context = module.getcontext()
    return (
        context.prec,
        context.rounding,
        context.Emin,
        context.Emax,
        context.capitals,
        context.clamp,
        tuple(context.traps.items()),
    )


def _set_decimal(module: Any, before: tuple[Any, ...]) -> None:
    context = module.getcontext()
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    for name, value in zip(names, before, strict=False):
        setattr(context, name, value)
    for trap, value in before[6]:
        context.traps[trap] = value
