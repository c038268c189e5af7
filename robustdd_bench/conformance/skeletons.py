"""The files of a new plugin, and writing them without overwriting anything."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from robustdd_bench.conformance import executor_skeleton
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.plugins import Registry

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "robustdd-$name"
version = "0.1.0"
description = "The $kind $name for robustdd-bench."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["robustdd-bench"]

[project.entry-points.robustdd]
$name = "$package"

[tool.setuptools]
packages = ["$package"]
"""

_README = """\
# robustdd-$name

The $kind `$name` for robustdd-bench. `$package/__init__.py` registers it,
`$package/$module.py` is where it lives.

    pip install --editable .
    robustdd check-plugin $name --kind $kind
    python -m pytest
"""

_INIT = '''\
"""Registers the $kind `$name`."""

from robustdd_bench.hookspecs import Register, hookimpl


@hookimpl
def robustdd_register_$hook(register: Register) -> None:
    """One $kind; its module is imported when it is first used."""
    register("$name", "$package.$module:$class_name", "one line that says what it does")
'''

_METHOD = '''\
"""The method `$name`: say here which paper and equations it follows, and where it deviates.

`robustdd cite $name` prints what the class attribute CITATION holds: BibTeX, or a Path to it.
"""

from typing import Annotated

import torch
from pydantic import Field

from robustdd_bench.config import settings
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Reporter


class $class_name(Distiller):
    """Random training images, drawn towards the mean of their class. Put your method here."""

    @settings
    class Config:
        """Settings of `$class_name`."""

        pull: Annotated[float, Field(ge=0, le=1)] = 0.5
        """How far each image moves towards the mean: 0 not at all, 1 all the way."""

    def distill(self, task: DistillTask, reporter: Reporter) -> DistilledSet:
        """Make the set; everything random comes from `task.seeds`."""
        images, labels = task.real_images(task.required_ipc(), task.seeds.generator("start"))
        means = torch.stack([task.pixels(index).mean(0) for index in task.class_indices()])
        return DistilledSet(images=images.lerp(means[labels], self.config.pull), labels=labels)
'''

_ATTACK = '''\
"""The attack `$name`: say here which paper and equations it follows, and where it deviates.

`robustdd cite $name` prints what the class attribute CITATION holds: BibTeX, or a Path to it.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings
from robustdd_bench.errors import UsageError


class $class_name(Attack):
    """One step along the sign of the gradient. Put your attack here."""

    @settings
    class Config:
        """Settings of `$class_name`."""

        step: Annotated[float, Field(gt=0, le=1)] = 1.0
        """Length of the step, as a share of eps."""

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; everything random comes from `task.generator`."""
        images, threat = task.images, task.threat
        if threat.norm != "Linf" or threat.targeted:
            raise UsageError("the attack '$name' needs the norm Linf and no targets")
        x = images.detach().clone().requires_grad_()
        loss = cross_entropy(task.model(x), task.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        moved = images + self.config.step * threat.eps * gradient.sign()
        return AttackResult(images=threat.project(moved, images))
'''

_TEST = """\
from robustdd_bench.conformance import check_$checked
from robustdd_bench.plugins import collect, get_plugin_manager


def test_it_passes_the_checks_of_the_benchmark() -> None:
    entry = collect(get_plugin_manager()).get("$hook", "$name")
    assert [finding for finding in check_$checked(entry) if not finding.passed] == []
"""

_KINDS = {
    "method": {"hook": "distillers", "module": "distiller", "checked": "distiller"},
    "attack": {"hook": "attacks", "module": "attack", "checked": "attack"},
    "executor": {"hook": "executors", "module": "executor", "checked": "executor"},
}
_CODE = {"method": _METHOD, "attack": _ATTACK, "executor": executor_skeleton.EXECUTOR}


def skeleton(name: str, kind: str) -> dict[str, str]:
    """The files of a plugin, as texts by path.

    Args:
        name: what it registers, e.g. "my-method".
        kind: "method", "attack" or "executor".
    """
    package = f"robustdd_{name.replace('-', '_')}"
    words = {
        "name": name,
        "kind": kind,
        "package": package,
        "class_name": "".join(part.capitalize() for part in name.split("-")),
        **_KINDS[kind],
    }
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{package}/__init__.py": _INIT,
        f"{package}/{words['module']}.py": _CODE[kind],
        f"tests/test_{name.replace('-', '_')}.py": _TEST,
    }
    if kind == "executor":
        files[f"{package}/worker.py"] = executor_skeleton.WORKER
    return {path: Template(text).substitute(words) for path, text in files.items()}


def write_skeleton(name: str, kind: str, into: Path, registry: Registry) -> Path:
    """Write the package of a new plugin, whole or not at all.

    Args:
        name: what it will register: small letters, digits and single hyphens.
        kind: "method", "attack" or "executor".
        into: the folder that gets the folder `robustdd-<name>`; made if it is missing.
        registry: what is installed; nothing there may have the name.

    Returns:
        The new folder.

    Raises:
        UsageError: the name is unfit or taken, or the folder exists.
        RunFailedError: the files cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"{name!r} cannot be the name of a plugin: use small letters, digits and hyphens, "
            "such as 'my-method'"
        )
    package = f"robustdd_{name.replace('-', '_')}"
    taken = name in registry.plugins or any(name in items for items in registry.entries.values())
    if taken or importlib.util.find_spec(package) is not None:
        raise UsageError(f"the name {name!r} is taken by what is installed; choose another")
    folder = into / f"robustdd-{name}"
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists; remove it or choose another name")
    temporary: str | None = None
    try:
        into.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".robustdd-{name}.", dir=into)
        for path, text in skeleton(name, kind).items():
            file = Path(temporary, path)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        os.chmod(temporary, 0o755)
        os.rename(temporary, folder)
        temporary = None
    except OSError as error:
        raise RunFailedError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
