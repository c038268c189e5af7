"""The three ways a command can end badly, each with its exit code."""

from __future__ import annotations

from collections.abc import Iterable


class RobustDDError(Exception):
    """An error whose text is one line for the user; ``exit_code`` is the process's."""

    exit_code = 1


class UsageError(RobustDDError):
    """The call was wrong: an unknown name, a bad value, a missing folder (exit code 2)."""

    exit_code = 2


class RunFailedError(RobustDDError):
    """The run itself failed, e.g. it diverged (exit code 1)."""


class PluginError(RobustDDError):
    """Code of a plugin failed; the message names the plugin (exit code 1)."""


class PluginWarning(UserWarning):
    """A plugin could not be loaded, is not what it claims to be, or leaves things changed."""


class PluginDeprecationWarning(PluginWarning, DeprecationWarning):
    """A plugin uses what a later version drops; the message names the plugin and the version."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Say that `name` is unknown, suggest the nearest of `known`, or list them all."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        hint = f"did you mean {close[0]!r}?"
    else:
        hint = f"known: {', '.join(names)}" if names else "none are installed"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
