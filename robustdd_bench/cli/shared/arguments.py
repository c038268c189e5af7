"""Arguments that several commands take: names of registered things, folders."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustdd_bench.cli.shared.session import Session
from robustdd_bench.errors import RobustDDError, UsageError, unknown_name
from robustdd_bench.records.means import DATA_VARIABLE, OUT_VARIABLE

# Newer versions of click have a generic ParamType, older ones cannot be subscripted.
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _TextType = click.ParamType[str]
else:
    _TextType = click.ParamType

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_OUT = Path("runs")
DEFAULT_DATA_ROOT = Path("data")


def out_option(function: Function) -> Function:
    """Add `--out DIR`, received as `out`."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=DEFAULT_OUT,
        show_default=True,
        envvar=OUT_VARIABLE,
        show_envvar=True,
        metavar="DIR",
        help="Folder that holds the run folders.",
    )(function)


def data_root_option(function: Function) -> Function:
    """Add `--data-root DIR`, received as `data_root`."""
    return click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        default=DEFAULT_DATA_ROOT,
        show_default=True,
        envvar=DATA_VARIABLE,
        show_envvar=True,
        metavar="DIR",
        help="Folder that holds the datasets, as torchvision lays them out; docs/datasets.md.",
    )(function)


def eps_value(text: str, option: str) -> float:
    """An eps that a call names, as 8/255 or .1.

    Args:
        text: what the call says.
        option: the option that says it.

    Raises:
        UsageError: it is neither a number of 0 or more nor a fraction.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"{option} takes a number or a fraction like 8/255, not {text!r}")
    return value


def witnesses_option(function: Function) -> Function:
    """Add `--witnesses`."""
    return click.option(
        "--witnesses",
        is_flag=True,
        help="Keep one adversarial example per broken (student, image), for `robustdd verify`.",
    )(function)


def must_exist(path: Path) -> None:
    """Refuse a file or folder that is not there, before what reads it is imported.

    Raises:
        UsageError: there is none.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no file {path}") from error
    except OSError:  # whoever reads it says what is wrong
        return


class OneOf(_TextType):
    """One of a few words; another one is an error with a suggestion.

    Args:
        what: what the word is, for the message.
        words: the words.
    """

    def __init__(self, what: str, words: Sequence[str]) -> None:
        self.name = what
        self.words = tuple(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word.

        Raises:
            UsageError: it is none of them.
        """
        if value not in self.words:
            raise unknown_name(self.name, str(value), self.words)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The words that begin like this."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Device(OneOf):
    """A device: one of the words, or a CUDA device by its number."""

    def __init__(self) -> None:
        super().__init__("device", ("auto", "cpu", "cuda"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word.

        Raises:
            UsageError: it is none of them.
        """
        from robustdd_bench.records.means import check_device

        check_device(str(value))
        return str(value)


class RegisteredName(_TextType):
    """The name of a registered thing. It is looked up by the command; here it is completed.

    Args:
        *kinds: of `robustdd_bench.plugins.KINDS`.
    """

    name = "name"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The registered names that begin like this, with their summaries."""
        from click.shell_completion import CompletionItem

        session = ctx.find_object(Session) or Session()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                registered = session.registry.entries
        except RobustDDError:
            return []
        return [
            CompletionItem(name, help=entry.summary)
            for kind in self.kinds
            for name, entry in registered[kind].items()
            if name.startswith(incomplete)
        ]
