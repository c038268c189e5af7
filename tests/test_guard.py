"""The guard around plugins' code: what is put back, what is named, what is a failure."""

from __future__ import annotations

import contextlib
import decimal
import gc
import locale
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
import torch
from commands import press_ctrl_c
from torch import nn

from robustdd_bench.errors import PluginError, PluginWarning, RunFailedError, UsageError
from robustdd_bench.guard import (
    StoppedError,
    blame,
    guard,
    left_changed,
    logged,
    plain_text,
    plugin_of,
    streams,
    told,
)
from robustdd_bench.guard.libraries import GROUPS
from robustdd_bench.guard.patches import Patches
from robustdd_bench.guard.settings import SavedSettings


def _enter(make: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
    make().__enter__()


def _hook() -> None:
    nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output)


def _tensor_type() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_default_tensor_type(torch.DoubleTensor)


_HELD: list[object] = []


def _inference() -> None:
    _HELD.append(torch.inference_mode())
    _HELD[-1].__enter__()  # type: ignore[attr-defined]


def _filters() -> None:
    warnings.simplefilter("ignore")


CHANGES: dict[str, tuple[str, Callable[[], object]]] = {
    "dtype": ("torch's default dtype", lambda: torch.set_default_dtype(torch.float64)),
    "tensor type": (
        "torch's default dtype",
        _tensor_type,
    ),
    "device": ("torch's default device", lambda: torch.set_default_device("meta")),
    "device mode": ("torch's default device", lambda: _enter(lambda: torch.device("meta"))),
    "threads": ("torch's number of threads", lambda: torch.set_num_threads(3)),
    "grad": ("torch's gradient mode", lambda: torch.set_grad_enabled(False)),
    "no_grad": ("torch's gradient mode", lambda: _enter(torch.no_grad)),
    "inference": ("torch's inference mode", _inference),
    "deterministic": (
        "torch's deterministic algorithms",
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ),
    "precision": (
        "torch's precision of float32 products",
        lambda: torch.set_float32_matmul_precision("medium"),
    ),
    "tf32": (
        "torch's cuda.matmul.allow_tf32",
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    ),
    "new precision": (
        "torch's arithmetic of float32 (generic, all)",
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    ),
    "cudnn tf32": (
        "torch's cudnn.allow_tf32",
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    ),
    "cudnn": (
        "torch's cudnn.benchmark",
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
    ),
    "cudnn deterministic": (
        "torch's cudnn.deterministic",
        lambda: setattr(torch.backends.cudnn, "deterministic", True),
    ),
    "mkldnn": ("torch's mkldnn.enabled", lambda: torch.backends.mkldnn.set_flags(False)),
    "denormal": (
        "torch's flushing of denormal numbers",
        lambda: torch.set_flush_denormal(True),
    ),
    "autocast": (
        "torch's autocast on the CPU",
        lambda: _enter(lambda: torch.autocast("cpu", torch.bfloat16)),
    ),
    "anomaly": ("torch's anomaly mode", lambda: torch.autograd.set_detect_anomaly(True)),
    "print": ("torch's print options", lambda: torch.set_printoptions(precision=1)),
    "hooks": ("hooks on all networks", _hook),
    "errstate": ("numpy's errstate", lambda: np.seterr(all="raise")),
    "numpy print": ("numpy's print options", lambda: np.set_printoptions(precision=1)),
    "rcParams": ("matplotlib's rcParams", lambda: mpl.rcParams.update({"font.size": 30})),
    "style": ("matplotlib's rcParams", lambda: mpl.rcParams.update({"savefig.dpi": 7})),
    "cwd": ("the working directory", lambda: os.chdir("/")),
    "variable": ("the environment (A_SECRET)", lambda: os.environ.update(A_SECRET="hidden")),
    "another environ": ("os.environ", lambda: setattr(os, "environ", dict(os.environ))),
    "no variable": ("the environment (PATH)", lambda: os.environ.pop("PATH")),
    "umask": ("the umask", lambda: os.umask(0o077 if _umask() != 0o077 else 0o022)),
    "locale": ("the locale", lambda: locale.setlocale(locale.LC_ALL, _other_locale())),
    "filters": ("the filters of warnings", _filters),
    "caught": (
        "the filters of warnings",
        lambda: (_enter(warnings.catch_warnings), _filters()),
    ),
    "showwarning": (
        "how warnings are shown",
        lambda: setattr(warnings, "showwarning", lambda *_, **__: None),
    ),
    "stdout": ("sys.stdout", lambda: setattr(sys, "stdout", None)),
    "stderr": ("sys.stderr", lambda: setattr(sys, "stderr", None)),
    "stdin": ("sys.stdin", lambda: setattr(sys, "stdin", None)),
    "path": ("sys.path", lambda: sys.path.insert(0, "/nowhere")),
    "new path": ("sys.path", lambda: setattr(sys, "path", ["/nowhere"])),
    "argv": ("sys.argv", lambda: sys.argv.append("--more")),
    "excepthook": ("sys.excepthook", lambda: setattr(sys, "excepthook", print)),
    "recursion": ("the recursion limit", lambda: sys.setrecursionlimit(5000)),
    "collector": ("the garbage collector", gc.disable),
    "thresholds": ("the garbage collector", lambda: gc.set_threshold(1, 1, 1)),
    "logging": ("logging", lambda: logging.disable(logging.CRITICAL)),
    "root level": ("logging", lambda: logging.getLogger().setLevel(1)),
    "handler": ("logging", lambda: logging.getLogger().addHandler(logging.NullHandler())),
    "SIGTERM": (
        "the handlers of signals (SIGTERM)",
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    ),
    "SIGINT": (
        "the handlers of signals (SIGINT)",
        lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ),
    "alarm": ("a timer of the process", lambda: signal.alarm(1000)),
    "decimal": (
        "the context of decimal numbers",
        lambda: setattr(decimal.getcontext(), "prec", 3),
    ),
    "socket": ("the timeout of sockets", lambda: socket.setdefaulttimeout(3)),
}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _other_locale() -> str:
    """A locale other than the one that is set."""
    return "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8"


@pytest.mark.parametrize(("words", "change"), CHANGES.values(), ids=list(CHANGES))
def test_what_a_plugin_changes_is_put_back_and_named(
    words: str, change: Callable[[], object]
) -> None:
    said: list[str] = []
    before = SavedSettings(GROUPS)
    streams = sys.stdout, sys.stderr
    with logged(said.append), guard("p", "method 'm'") as call:
        change()
    assert before.restore() == []
    assert (sys.stdout, sys.stderr) == streams
    assert len(said) == 1
    assert said[0].startswith("plugin 'p': method 'm' left ")
    assert words in said[0]
    assert said[0].endswith(" changed; restored")
    assert "hidden" not in said[0], "values of variables may be secret"
    assert any(words in change for change in call.changes)


def test_everything_at_once_is_put_back_in_spite_of_an_error() -> None:
    before = SavedSettings(GROUPS)
    said: list[str] = []
    call = guard("p", "method 'm'")

    def all_of_it() -> None:
        with call:
            for _, change in CHANGES.values():
                change()
            raise ValueError("and that")

    with logged(said.append), pytest.raises(ValueError, match="and that"):
        all_of_it()
    assert before.restore() == []
    names = {words.partition(" (")[0] for words, _ in CHANGES.values()}
    assert {name for name in names if not any(name in text for text in call.changes)} == set()
    assert len(said[0]) < 1000


def test_what_cannot_be_restored_is_said_to_be_so() -> None:
    code = (
        "import torch\n"
        "from robustdd_bench.guard import guard, logged\n"
        "with logged(print), guard('p', 'method \\'m\\''):\n"
        "    torch.set_num_interop_threads(torch.get_num_interop_threads() + 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words = "left torch's number of threads between operations ("
    assert done.stdout.startswith(f"plugin 'p': method 'm' {words}")
    assert done.stdout.endswith("; it cannot be restored) changed\n")


def test_the_time_zone_is_put_back_with_its_variable() -> None:
    before = time.tzname
    with logged(lambda text: None), guard("p", "method 'm'"):
        os.environ["TZ"] = "Asia/Tokyo" if "JST" not in before else "UTC"
        time.tzset()
        assert time.tzname != before
    assert time.tzname == before


def test_numbers_drawn_from_global_generators_are_put_back_without_a_word() -> None:
    said: list[str] = []

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    with logged(said.append), guard("p", "method 'm'"):
        draw()
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        torch.manual_seed(7)
    assert draw() == expected
    assert said == []


def test_a_plugin_that_leaves_all_alone_is_not_named(recwarn: pytest.WarningsRecorder) -> None:
    with guard("p", "method 'm'") as call:
        with torch.no_grad(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    assert call.changes == ()
    assert len(recwarn) == 0


def test_without_a_log_a_change_is_a_warning_and_with_one_it_is_said_once() -> None:
    words = "plugin 'p': method 'm' left the working directory"
    with pytest.warns(PluginWarning, match=words), guard("p", "method 'm'"):
        os.chdir("/")
    said: list[str] = []
    with logged(said.append):
        for _ in range(3):
            with guard("p", "method 'm'"):
                os.chdir("/")
    assert len(said) == 1


def test_a_plugin_within_a_plugin_leaves_the_outer_ones_settings_and_each_is_named() -> None:
    said: list[str] = []
    with logged(said.append), guard("outer", "method 'm'"):
        torch.set_default_dtype(torch.float64)
        with guard("inner", "network 'n'"):
            torch.set_default_dtype(torch.float16)
            os.chdir("/")
        assert torch.get_default_dtype() == torch.float64
        assert os.getcwd() != "/"
    assert torch.get_default_dtype() == torch.float32
    assert [text.split("left")[0] for text in said] == [
        "plugin 'inner': network 'n' ",
        "plugin 'outer': method 'm' ",
    ]


def test_a_setting_of_the_user_stays_what_it_is() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with guard("p", "method 'm'"):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_harness_itself_is_not_guarded() -> None:
    with guard("builtin", "network 'convnet'"):
        os.environ["ROBUSTDD_OF_OURS"] = "1"
    assert os.environ.pop("ROBUSTDD_OF_OURS") == "1"


def test_imports_and_hooks_that_left_something_changed_are_remembered() -> None:
    with pytest.warns(PluginWarning), guard("remembered", "its import"):
        os.chdir("/")
    assert left_changed("remembered") == (
        f"its import leaves the working directory ({os.getcwd()} -> /) changed",
    )
    assert left_changed("somebody else") == ()


def test_a_library_that_a_plugin_imports_first_is_put_back_as_well() -> None:
    code = (
        "import sys, warnings\n"
        "from robustdd_bench.guard import guard\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "warnings.simplefilter('ignore')\n"
        "with guard('p', 'its import') as call:\n"
        "    import torch, numpy, matplotlib\n"
        "    torch.set_default_dtype(torch.float64)\n"
        "    numpy.seterr(all='raise')\n"
        "    matplotlib.rcParams['font.size'] = 30\n"
        "    numpy.random.seed(3)\n"
        "print(torch.get_default_dtype(), numpy.geterr()['divide'],\n"
        "      matplotlib.rcParams['font.size'], len(call.changes))\n"
        "print(torch.__spec__.loader is torch.__loader__, type(torch.__loader__).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["torch.float32 warn 10.0 3", "True SourceFileLoader"]


# --- output ------------------------------------------------------------------------------------


def test_what_a_plugin_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    print("data")
    with guard("p", "method 'm'"):
        print("one")
        sys.stdout.write("two\n")
        sys.stdout.buffer.write(b"three\n")
        print("four", file=sys.__stdout__)
        os.write(1, b"five\n")
        subprocess.run([sys.executable, "-c", "print('six')"], check=True)
        kept = sys.stdout
    print("more data")
    kept.write("seven, later\n")
    shown = capfd.readouterr()
    assert shown.out == "data\nmore data\n"
    words = ("one", "two", "three", "four", "five", "six", "seven")
    assert all(word in shown.err for word in words)


def test_a_plugin_that_closes_descriptors_does_not_take_the_streams_away(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []
    with logged(said.append), guard("p", "method 'm'"):
        os.close(1)
        sys.stdout.close()
    print("data", flush=True)
    os.write(2, b"word\n")
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("data\n", "word\n")
    assert "the file descriptor of stdout" in said[0]


def test_a_command_may_write_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with guard("p", "command 'c'", keep_stdout=True):
        print("data", flush=True)
    assert capfd.readouterr().out == "data\n"


# --- ends --------------------------------------------------------------------------------------


class Private(BaseException):
    """No Exception."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(), r"SystemExit: it called exit\(\); raise an exception that says what is"),
        (SystemExit(0), r"SystemExit: it called exit\(0\)"),
        (SystemExit("no\nlicence"), r"SystemExit: it called exit\(no licence\)"),
        (KeyboardInterrupt(), r"KeyboardInterrupt \(nobody pressed Ctrl-C\)"),
        (GeneratorExit("x"), r"GeneratorExit: x"),
        (Private("deep"), r"Private: deep"),
    ],
)
def test_what_would_end_the_process_is_the_plugins_failure(
    error: BaseException, words: str
) -> None:
    def call() -> None:
        with guard("p", "method 'm'"):
            raise error

    with pytest.raises(StoppedError, match=words):
        call()

    def blamed() -> None:
        with blame("p", "method 'm'"):
            raise error

    with pytest.raises(PluginError, match=f"plugin 'p': method 'm' failed: {words}"):
        blamed()


def _pressed_and(then: Callable[[], object]) -> None:
    with guard("p", "method 'm'"):
        try:
            press_ctrl_c()
        except KeyboardInterrupt:
            then()


def _leave() -> None:
    sys.exit(1)


def _break() -> None:
    raise RuntimeError("a worker died")


@pytest.mark.parametrize("then", [_leave, _break, lambda: None])
def test_a_real_ctrl_c_interrupts_whatever_the_plugin_makes_of_it(
    then: Callable[[], object],
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _pressed_and(then)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_real_ctrl_c_passes_through_two_guards_and_nobody_is_blamed() -> None:
    def nested() -> None:
        with blame("outer", "method 'm'"), blame("inner", "network 'n'"):
            press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        nested()


def test_a_ctrl_c_while_a_guard_is_at_work_leaves_nothing_half_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, stdout = SavedSettings(GROUPS), sys.stdout
    made = streams.Streams.__init__

    def pressed_at_the_start(self: streams.Streams, aside: bool) -> None:
        made(self, aside)
        press_ctrl_c()

    def pressed_at_the_end(self: streams.Streams) -> list[str]:
        press_ctrl_c()
        return restore(self)

    restore = streams.Streams.restore
    for name, pressed in (("__init__", pressed_at_the_start), ("restore", pressed_at_the_end)):
        with monkeypatch.context() as patch:
            patch.setattr(streams.Streams, name, pressed)
            with pytest.raises(KeyboardInterrupt):
                _pressed_and(lambda: None)
        assert sys.stdout is stdout
        assert before.restore() == []


def test_an_interrupt_that_another_thread_raises_is_not_the_users() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with guard("p", "method 'm'"):
                raise KeyboardInterrupt
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in found] == [StoppedError]


def test_a_guard_in_a_second_thread_leaves_the_settings_to_the_first() -> None:
    before = os.getcwd()

    def work() -> None:
        with guard("second", "method 'm'"):
            pass

    with logged(lambda text: None), guard("first", "method 'm'"):
        os.chdir("/")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert os.getcwd() == "/"
    assert os.getcwd() == before


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise SystemExit("got you")


class OfTheirsError(UsageError):
    def __str__(self) -> str:
        return "a\nb"


def test_any_exception_is_one_line_of_a_sensible_length() -> None:
    assert told(UnprintableError()) == (
        "UnprintableError: (its text cannot be shown: __str__ raised SystemExit)"
    )
    assert told(ValueError("a\n\tb\x1b[31m\u202ec")) == "ValueError: a b [31m c"
    assert told(KeyError()) == "KeyError"
    assert len(plain_text(ValueError("x" * 10**6))) == 1000


def test_errors_of_ours_pass_and_kinds_of_a_strangers_own_become_ours() -> None:
    def raising(error: BaseException) -> None:
        with blame("p", "method 'm'"):
            raise error

    for error in (UsageError("u"), RunFailedError("r"), PluginError("p"), MemoryError()):
        with pytest.raises(type(error)) as caught:
            raising(error)
        assert caught.value is error
    with pytest.raises(UsageError, match=r"^a b$") as changed:
        raising(OfTheirsError())
    assert type(changed.value) is UsageError
    with pytest.raises(PluginError, match="its text cannot be shown"):
        raising(UnprintableError())


def test_code_is_known_by_its_plugin_or_else_by_its_package() -> None:
    assert plugin_of(UsageError) == "builtin"
    assert plugin_of(UnprintableError()) == UnprintableError.__module__


# --- patches -----------------------------------------------------------------------------------


def test_replaced_functions_of_classes_are_put_back_and_named() -> None:
    class Own(nn.Linear):
        pass

    network = nn.Sequential(Own(2, 2))
    expected = network(torch.ones(1, 2))
    functional = torch.nn.functional.linear
    patches = Patches([network])
    nn.Linear.forward = lambda self, x: x  # type: ignore[method-assign, assignment]
    nn.Module.__call__ = lambda self, x: -x
    Own.forward = lambda self, x: 0 * x  # type: ignore[method-assign, assignment]
    torch.nn.functional.linear = lambda *_: 0
    torch.Tensor.argmax = lambda self, *_: 0  # type: ignore[method-assign, assignment]
    found = patches.restore()
    assert torch.equal(network(torch.ones(1, 2)), expected)
    assert torch.nn.functional.linear is functional
    assert "forward" not in vars(Own)
    assert {name.rpartition(">.")[2] for name in found} == {
        "Linear.forward",
        "Module.__call__",
        "Own.forward",
        "torch.nn.functional.linear",
        "Tensor.argmax",
    }
    assert patches.restore() == []
