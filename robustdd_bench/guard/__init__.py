"""Around every import of a plugin's code and every call into it.

A plugin is code and runs with the user's rights; this is no sandbox. It is what keeps one plugin's
habits out of other people's figures:

- What the plugin changes in the process is put back: torch's defaults (dtype, device, threads,
  gradient and inference mode, deterministic and TF32 switches, hooks on all networks), numpy's
  errstate, print options, the global generators, filters of warnings, working directory,
  environment, locale, umask, handlers of signals, streams, `sys.path`, logging, matplotlib's
  rcParams and more; `process.py` and `libraries.py` list them. A change is named with the plugin
  in the run's log, or in a warning; `robustdd check-plugin` fails it. Drawing from a global
  generator is put back without a word.
- What it writes to stdout goes to stderr: stdout is data.
- SystemExit, GeneratorExit, a KeyboardInterrupt without Ctrl-C and whatever else is no Exception
  are the plugin's failure, a `StoppedError`. After a Ctrl-C the call ends in a KeyboardInterrupt,
  whatever the plugin makes of it.

Not covered: functions of other modules that a plugin replaces (but see `patches.py`, around
attacks), threads that it leaves running, files that it writes, `os._exit`, a crash of the
interpreter, and signals that it sends to its own process. The settings are those of the whole
process, so where two threads are in plugins at once, only the guard that came first keeps them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from robustdd_bench.errors import (
    PluginError,
    PluginWarning,
    RobustDDError,
    RunFailedError,
    UsageError,
)
from robustdd_bench.guard.interrupts import INTERRUPTS
from robustdd_bench.guard.libraries import GROUPS
from robustdd_bench.guard.patches import Patches
from robustdd_bench.guard.settings import LOST, ImportWatch, SavedSettings
from robustdd_bench.guard.streams import Streams
from robustdd_bench.text.terminal import hides, one_line

__all__ = [
    "BUILTIN",
    "StoppedError",
    "blame",
    "blame_stranger",
    "guard",
    "known_as",
    "left_changed",
    "logged",
    "plain_text",
    "plugin_of",
    "told",
]

BUILTIN = "builtin"
MAX_TEXT = 1000

_log: ContextVar[Callable[[str], object] | None] = ContextVar("log", default=None)
_faults: dict[str, dict[str, None]] = defaultdict(dict)
_owner: list[Any] = []
"""The thread whose guards keep the settings, once for each of its open guards."""


_plugins: dict[str, str] = {}
"""Modules of plugins, and the plugins' names."""


def known_as(module: str, plugin: str) -> None:
    """Remember whose module it is."""
    _plugins[module] = plugin
    _plugins.setdefault(module.partition(".")[0], plugin)


def plugin_of(thing: Any) -> str:
    """The plugin that a class or an object of it is from; its package where that is not known."""
    module = str(getattr(thing if isinstance(thing, type) else type(thing), "__module__", "?"))
    top = module.partition(".")[0]
    if top == "robustdd_bench":
        return BUILTIN
    while module and module not in _plugins:
        module = module.rpartition(".")[0]
    return _plugins.get(module, top)


class StoppedError(Exception):
    """A plugin raised what is meant to end the process, or to end a generator."""


def told(error: BaseException) -> str:
    """An exception as one line, its class and its text, whatever a stranger put into it."""
    if isinstance(error, StoppedError):
        return str(error)
    text = plain_text(error)
    name = one_line(type(error).__name__, 100)
    return f"{name}: {text}" if text else name


def plain_text(error: BaseException) -> str:
    """The text of an exception on one line."""
    try:
        text = str(error)[: 10 * MAX_TEXT]
    except BaseException as second:
        text = f"(its text cannot be shown: __str__ raised {type(second).__name__})"
    return one_line("".join(" " if hides(c) or c == "\n" else c for c in text), MAX_TEXT)


@contextlib.contextmanager
def logged(log: Callable[[str], object]) -> Iterator[None]:
    """Within, what plugins leave changed goes to `log`, each sentence once, instead of a warning.

    Args:
        log: takes a sentence.
    """
    seen: set[str] = set()

    def once(text: str) -> None:
        if text not in seen:
            seen.add(text)
            log(text)

    token = _log.set(once)
    try:
        yield
    finally:
        _log.reset(token)


def left_changed(plugin: str) -> tuple[str, ...]:
    """What a plugin's imports and hooks have left changed since the process began: sentences."""
    return tuple(_faults.get(plugin, ()))


class guard:  # noqa: N801 (used like a function)
    """A context manager: what is called within is a plugin's, and changes nothing for others.

    Args:
        plugin: its name. The harness's own code, of the plugin "builtin", is not guarded.
        what: what is called, e.g. "method 'mat'".
        keep_stdout: let it write to stdout, as a command may.
        passing: exceptions that are not its failure, such as the exit code of a command.
        patches: classes and modules whose contents are put back as well.
        light: another guard keeps the settings; only what is no Exception is seen to.

    Raises:
        StoppedError: it raised what is no Exception.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """

    __slots__ = (
        "_count",
        "_light",
        "_mine",
        "_passing",
        "_patches",
        "_plugin",
        "_snapshot",
        "_stdout",
        "_streams",
        "_watch",
        "_watched",
        "_what",
        "changes",
    )  # fmt: skip

    def __init__(
        self,
        plugin: str,
        what: str,
        *,
        keep_stdout: bool = False,
        passing: tuple[type[BaseException], ...] = (),
        patches: Patches | None = None,
        light: bool = False,
    ) -> None:
        self._plugin, self._what = plugin, what
        self._stdout, self._passing, self._patches = keep_stdout, passing, patches
        self._light = light
        self.changes: tuple[str, ...] = ()
        """What was left changed, once the call is over."""

    def __enter__(self) -> Self:
        thread = threading.get_ident()
        ours = self._light or self._plugin == BUILTIN
        self._mine = not ours and (not _owner or _owner[-1] == thread)
        self._count = INTERRUPTS.count
        self._watched = None
        if not self._mine:
            return self
        _owner.append(thread)
        self._watched = INTERRUPTS.watch()
        INTERRUPTS.hold()
        self._snapshot = SavedSettings(GROUPS)
        self._watch = None
        missing = self._snapshot.missing()
        if missing:
            self._watch = ImportWatch(missing, self._snapshot.add)
            sys.meta_path.insert(0, self._watch)
        self._streams = Streams(aside=not self._stdout)
        try:
            INTERRUPTS.let_go()
        except BaseException:  # a Ctrl-C that came meanwhile
            self._put_back()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        unsure = False
        if self._mine:
            unsure = INTERRUPTS.unsure()
            self._put_back()
        if self._plugin == BUILTIN:
            return
        self._say()
        if error is None or isinstance(error, self._passing):
            if INTERRUPTS.count != self._count and error is None:
                raise KeyboardInterrupt  # it was swallowed
            return
        if INTERRUPTS.count != self._count:
            if isinstance(error, KeyboardInterrupt):
                return
            raise KeyboardInterrupt from error
        if isinstance(error, Exception) or (unsure and isinstance(error, KeyboardInterrupt)):
            return
        raise StoppedError(_stop_text(error)) from error

    def _put_back(self) -> None:
        INTERRUPTS.hold()
        try:
            changed = self._streams.restore()
            if self._watch is not None and self._watch in sys.meta_path:
                sys.meta_path.remove(self._watch)
            found = self._snapshot.restore()
            if self._patches is not None:
                changed += self._patches.restore()
            changed += [change.text() for change in found if change.named]
            self.changes = tuple(changed)
        finally:
            _owner.pop()
            INTERRUPTS.unwatch(self._watched)
            INTERRUPTS.let_go()

    def _say(self) -> None:
        if not self._mine or not self.changes:
            return
        head = f"plugin {self._plugin!r}: {self._what}"
        end = "" if any(LOST in change for change in self.changes) else "; restored"
        text = f"{head} left {one_line(' and '.join(self.changes))} changed{end}"
        if self._what.startswith(("its ", "the import", "robustdd_")):
            said = f"{self._what} leaves {one_line(' and '.join(self.changes))} changed"
            _faults[self._plugin].setdefault(said)
        log = _log.get()
        if log is None:
            warnings.warn(text, PluginWarning, stacklevel=3)
        else:
            log(text)


def _stop_text(error: BaseException) -> str:
    name, text = one_line(type(error).__name__, 100), plain_text(error)
    if isinstance(error, SystemExit):
        return f"SystemExit: it called exit({text}); raise an exception that says what is wrong"
    why = " (nobody pressed Ctrl-C)" if isinstance(error, KeyboardInterrupt) else ""
    return f"{name}: {text}{why}" if text else f"{name}{why}"


def blame_stranger(plugin: str, what: str) -> contextlib.AbstractContextManager[None]:
    """`blame` for code that may also be the harness's own, whose errors are nobody's."""
    return contextlib.nullcontext() if plugin == BUILTIN else blame(plugin, what)


@contextlib.contextmanager
def blame(plugin: str, what: str, **options: Any) -> Iterator[None]:
    """Guard a plugin's code, and turn what it raises into a PluginError that names it.

    The harness's own errors and a lack of memory pass.

    Args:
        plugin: its name.
        what: what is called.
        **options: see `guard`.
    """
    try:
        with guard(plugin, what, **options):
            yield
    except RobustDDError as error:
        clean = _clean(error)
        if clean is error:
            raise
        raise clean from error
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise PluginError(f"plugin {plugin!r}: {what} failed: {told(error)}") from error


def _clean(error: RobustDDError) -> RobustDDError:
    """The error, or one of ours with a text of one line in place of a stranger's own kind."""
    kinds = (UsageError, PluginError, RunFailedError, RobustDDError)
    if type(error) in kinds or type(error).__module__.startswith("robustdd_bench."):
        with contextlib.suppress(Exception):
            str(error)
            return error
    kind = next(kind for kind in kinds if isinstance(error, kind))
    return kind(plain_text(error))
