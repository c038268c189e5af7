"""The loggers of plugins: every event of a run goes to each hook `robustdd_report`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pluggy

from robustdd_bench.errors import PluginWarning
from robustdd_bench.guard import guard, told

Publish = Callable[..., object]
"""Called as `publish(event=...)`; see `plugin_loggers`."""


def plugin_loggers(manager: pluggy.PluginManager) -> Publish:
    """A function that hands an event to every plugin with the hook `robustdd_report`.

    A logger that raises is named in a warning once and gets no more events: a failing logger does
    not stop the run. The function has an attribute `batch`, a context manager around many events.
    """
    return _Loggers(list(manager.hook.robustdd_report.get_hookimpls()))


class _Loggers:
    """The loggers that still work."""

    def __init__(self, loggers: list[Any]) -> None:
        self._loggers = loggers
        self._guarded = False

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Hand over an event."""
        for logger in tuple(self._loggers):
            try:
                with guard(logger.plugin_name, "robustdd_report", light=self._guarded):
                    logger.function(**dict.fromkeys(logger.argnames, event))
            except Exception as error:
                self._loggers.remove(logger)
                warnings.warn(
                    f"plugin {logger.plugin_name!r}: robustdd_report failed and is left out: "
                    f"{told(error)}",
                    PluginWarning,
                    stacklevel=2,
                )

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Guard many events together, which is faster: values come by the thousand."""
        names = " or ".join(str(logger.plugin_name) for logger in self._loggers)
        if not names:
            yield
            return
        with guard(names, "robustdd_report"):
            self._guarded = True
            try:
                yield
            finally:
                self._guarded = False
