"""`robustdd doctor`: what it looks at, and what it says of a machine that is not fit."""

import functools
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import strangers
import torch
from commands import robustdd

from robustdd_bench.cli import doctor, doctor_devices
from robustdd_bench.cli.doctor import (
    check_data,
    check_disk,
    check_package,
    check_plugins,
    check_torchvision,
    print_checks,
)
from robustdd_bench.cli.doctor_devices import Diagnosis, check_arithmetic, gib
from robustdd_bench.cli.main import main
from robustdd_bench.cli.shared.session import Session
from robustdd_bench.toolkit.fast import allocator, blocks
from robustdd_bench.toolkit.fast import compile as compile_module
from robustdd_bench.toolkit.fast.allocator import keep_memory
from robustdd_bench.toolkit.fast.capture import Availability


@pytest.fixture(scope="module")
def report() -> dict[str, object]:
    """What doctor says of the machine of the tests."""
    result = robustdd("doctor", "--json")
    found: dict[str, object] = json.loads(result.stdout)
    assert found["ok"] == (result.returncode == 0)
    return found


@pytest.mark.parametrize(
    "what",
    [
        *("python", "platform", "cpu", "memory", "threads", "tf32", "deterministic algorithms"),
        *("torch", "torchvision", "numpy", "pydantic", "safetensors", "scikit-learn"),
        *("arithmetic on cpu", "captured steps", "compiled kernels", "stacked students"),
        *("plugins", "disk", "data"),
    ],
)
def test_a_sound_machine_passes_each_check(
    report: dict[str, list[dict[str, str]]], what: str
) -> None:
    found = [check for check in report["checks"] if check["what"] == what]
    assert found
    assert all(check["status"] != "fail" and check["detail"] for check in found)


def test_cuda_is_reported_with_its_devices(report: dict[str, list[dict[str, str]]]) -> None:
    names = {check["what"] for check in report["checks"]}
    assert ("cuda:0" in names) == torch.cuda.is_available()
    assert ("cuda" in names) != torch.cuda.is_available()


def test_fast_paths_are_named_with_the_reason_why_one_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = {c.what: c for c in doctor_devices.check_fast_paths(torch.device("cpu"))}
    assert checks["captured steps"].detail == (
        "off: CUDA graphs need a CUDA device, and this is cpu"
    )
    assert checks["stacked students"].detail.startswith("off: on the CPU")
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "off")
    (first, *_) = doctor_devices.check_fast_paths(torch.device("cuda"))
    assert (first.status, first.detail) == ("ok", "off: ROBUSTDD_CAPTURE=off")
    # A device that promises graphs and does not deliver is a warning, not the end of doctor.
    monkeypatch.delenv("ROBUSTDD_CAPTURE")
    monkeypatch.setattr(doctor_devices, "_try_capture", lambda device: "no graphs today")
    (first, kernels, second, _) = doctor_devices.check_fast_paths(torch.device("cuda"))
    assert (first.status, first.detail) == ("warn", "off: no graphs today; steps run one by one")
    assert (kernels.status, kernels.detail) == (
        "ok",
        "off: no GPU is found",
    )
    assert second.detail == "on: stacked on a GPU"


def test_compiled_kernels_are_tried_and_a_missing_compiler_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = compile_module.availability(torch.device("cpu"))
    if found.active:
        assert doctor_devices.check_kernels(torch.device("cpu")).status == "ok"
        real = blocks.kernels(torch.device("cpu"))

        def wrong(name: str, tensors: Sequence[torch.Tensor], *rest: Any) -> None:
            real(name, tensors, *rest)
            tensors[3].mul_(2)

        monkeypatch.setattr(blocks, "kernels", lambda *_: wrong)
        check = doctor_devices.check_kernels(torch.device("cpu"))
        assert (check.status, check.detail[:29]) == ("warn", "compiled kernels are not used")
    missing = Availability(False, "no C++ compiler is found; install g++")
    monkeypatch.setattr(compile_module, "availability", lambda device: missing)
    check = doctor_devices.check_kernels(torch.device("cpu"))
    assert check == Diagnosis("warn", "compiled kernels", f"off: {missing.reason}")


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_doctor_says_whether_freed_memory_is_kept(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(allocator.VARIABLE, mode)
    monkeypatch.setattr(allocator, "keep_memory", functools.cache(keep_memory.__wrapped__))
    (*_, check) = doctor_devices.check_fast_paths(torch.device("cpu"))
    assert (check.status, check.what) == ("ok", "kept memory")
    if mode == "off":
        assert check.detail == "off: ROBUSTDD_KEEP_MEMORY=off"
    else:
        kept = allocator.keep_memory()
        assert check.detail == f"{'on' if kept.active else 'off'}: {kept.reason}"


def test_the_trial_of_captured_steps_does_its_step() -> None:
    assert doctor_devices._try_capture(torch.device("cpu")) is None


@pytest.mark.gpu
def test_the_trial_of_captured_steps_succeeds_on_a_gpu() -> None:
    assert doctor_devices._try_capture(torch.device("cuda")) is None


def test_each_check_is_a_line_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Diagnosis("ok", "disk", "plenty"), Diagnosis("fail", "torch", "absent")]
    assert print_checks(checks) == checks
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "disk", "plenty"],
        ["fail", "torch", "absent"],
    ]


def test_a_failed_check_is_exit_code_1_and_no_complaint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda *args: iter([Diagnosis("fail", "x", "broken")]))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == ""
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    monkeypatch.setattr(doctor, "diagnose", lambda *args: iter([Diagnosis("warn", "x", "so so")]))
    assert main(["doctor"]) == 0


# --- packages --------------------------------------------------------------------------------


def test_a_missing_package_comes_with_its_remedy() -> None:
    check = check_package("no-such-distribution-xyz>=1")
    assert check.status == "fail"
    assert "pip install 'no-such-distribution-xyz>=1'" in check.detail


def test_a_package_that_is_too_old_is_a_failure() -> None:
    check = check_package("click>=99.5")
    assert check.status == "fail"
    assert "too old" in check.detail
    assert check_package("click>=1.10").status == "ok"


def test_a_torchvision_of_another_build_is_one_line_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does\\nnot exist')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    check = check_package("torchvision>=0.1")
    assert check.status == "fail"
    assert importlib.metadata.version("torch") in check.detail
    assert "operator torchvision::nms does not exist" in check.detail
    assert "install both of one build" in check.detail
    assert "\n" not in check.detail


def test_builds_that_differ_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torch, "__version__", "2.15.0+cpu")
    monkeypatch.setattr(torchvision, "__version__", "0.29.2+cu132")
    check = check_torchvision()
    assert check.status == "warn"
    assert "a cu132 build beside a cpu build of torch" in check.detail


def test_arithmetic_that_is_wrong_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_arithmetic(torch.device("cpu")).status == "ok"
    exact = torch.nn.functional.conv2d

    def wrong(x: torch.Tensor, w: torch.Tensor, padding: int) -> torch.Tensor:
        return exact(x, w, padding=padding) * (1 if x.dtype == torch.float64 else 1.1)

    monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)
    assert check_arithmetic(torch.device("cpu")).status == "fail"


# --- plugins, disk, data ---------------------------------------------------------------------


def test_a_broken_plugin_is_a_warning_and_a_conflict_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBUSTDD_DISABLED_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    strangers.install(tmp_path, "absent", "import no_such_module_xyz\n")
    found = list(check_plugins(Session()))
    assert [check.status for check in found if check.what in ("plugin absent", "plugins")] == [
        "warn",
        "ok",
    ]
    assert "no_such_module_xyz" in found[0].detail
    strangers.install(tmp_path, "mine", strangers.method("random"))
    (conflict,) = check_plugins(Session())
    assert conflict.status == "fail"
    assert "'mine'" in conflict.detail
    sys.modules.pop("stranger_mine")


def test_the_disk_is_judged_where_the_runs_will_go(tmp_path: Path) -> None:
    check = check_disk(tmp_path / "not" / "yet")
    assert check.status in ("ok", "warn")
    assert "free at" in check.detail
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert check_disk(blocked / "runs").status == "fail"


def test_datasets_are_found_by_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").touch()
    checks = list(check_data(tmp_path))
    assert checks[0].status == "warn"
    assert "cifar-10-batches-py/test_batch" in checks[0].detail
    (folder / "test_batch").touch()
    found, missing = check_data(tmp_path)
    assert (found.status, found.detail) == ("ok", "found: digits (embedded), cifar10")
    assert "cifar100" in missing.detail
    assert "cifar10," not in missing.detail


def test_a_data_root_that_is_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    (check,) = check_data(tmp_path / "data")
    assert check.status == "fail"


def test_sizes_are_in_gib() -> None:
    assert gib(3 * 2**29) == "1.5 GiB"
