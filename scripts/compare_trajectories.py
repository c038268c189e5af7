"""Hold GSAM, the average of images, TESLA's gradient and DATM's steps against the published codes.

    python scripts/compare_trajectories.py --ftd FOLDER --datm FOLDER --tesla FOLDER

The folders hold AngusDujw/FTD-distillation, NUS-HPC-AI-Lab/DATM and justincui03/tesla. The classes
of FTD are imported. The distillation of the other two is one function of hundreds of lines, so the
statements of its loop are found in its syntax tree and executed as they are, on our tensors, in
float64. Only figures are kept, in docs/studies/tesla-gradient.json: each tensor by its norm and by
its products with two fixed vectors. A test computes ours again and holds it against them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.files import read_json, write_json
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.toolkit.fast.flat import FlatNetwork

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "studies" / "tesla-gradient.json"
CLASSES, IMAGES, STEPS, BATCH = 3, 6, 5, 3
RHO, GSAM_ALPHA, RATE, DECAY = 0.05, 0.3, 0.1, 0.9
ALPHA, ITERATIONS = 0.2, 3
RATES = {"images": 2.0, "alpha": 0.01, "labels": 3.0}
MOMENTUM = {"images": 0.5, "alpha": 0.5, "labels": 0.9}
SCHEDULE = [(10, 20, 1000), (20, 40, 2000), (30, 50, 2000), (3, 10, 7)]
LIMITS = {"all move": 10.0, "one moves": 1.05, "none moves": 0.5}


def wave(shape: Sequence[int], k: float) -> Tensor:
    """Numbers in [-1, 1] that depend on no generator, float64."""
    count = int(np.prod(shape))
    return torch.sin(torch.arange(count, dtype=torch.float64) * (0.7 + 0.1 * k) + k).view(*shape)


def digest(tensor: Tensor) -> list[float]:
    """Norm, and products with two fixed vectors."""
    flat = tensor.detach().double().flatten()
    return [float(flat.norm()), *(float(flat @ wave(flat.shape, k)) for k in (11, 12))]


class PeerProblem:
    """A student of a few weights, images, labels, a start and a target."""

    def __init__(self) -> None:
        self.body: nn.Module = convnet((2, 8, 8), CLASSES, depth=2, width=4).double()
        self.network = FlatNetwork(nn.Sequential(nn.Identity(), self.body))
        self.start = 0.3 * wave((self.network.size,), 1)
        self.target = self.start + 0.05 * wave((self.network.size,), 2)
        self.images = wave((IMAGES, 2, 8, 8), 3)
        self.labels = torch.arange(IMAGES) % CLASSES
        self.logits = 2 * wave((IMAGES, CLASSES), 4)
        self.expert_logits = 2 * wave((4, IMAGES, CLASSES), 5)
        for i in range(IMAGES):  # each image is known to an expert
            self.expert_logits[i % 4, i, self.labels[i]] += 5


def _statements(path: Path, first: str, last: str) -> list[ast.stmt]:
    """The statements of `main` or its loop from one that begins with `first` to one with `last`."""
    tree = ast.parse(path.read_text("utf-8"))
    (main,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    bodies = [main.body] + [n.body for n in main.body if isinstance(n, ast.For)]
    for body in bodies:
        texts = [ast.unparse(statement) for statement in body]
        begins = [i for i, text in enumerate(texts) if text.startswith(first)]
        ends = [i for i, text in enumerate(texts) if text.startswith(last)]
        if begins and ends and begins[0] <= ends[-1]:
            return body[begins[0] : ends[-1] + 1]
    raise SystemExit(f"{path}: no statements from {first!r} to {last!r}: another version of it?")


def _execute(statements: Sequence[ast.stmt], names: dict[str, Any]) -> None:
    module = ast.Module(body=list(statements), type_ignores=[])
    exec(compile(module, "<published code>", "exec"), names)


@contextmanager
def _doubles() -> Iterator[None]:
    """What the published code makes without naming a type is float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _names(problem: PeerProblem, **more: Any) -> dict[str, Any]:
    flat = problem.network
    arguments = types.SimpleNamespace(
        device="cpu", syn_steps=STEPS, batch_syn=BATCH, dsa=False, no_aug=True, distributed=False
    )
    names: dict[str, Any] = {
        "torch": torch,
        "np": np,
        "F": F,
        "args": arguments,
        "image_syn": problem.images.clone().requires_grad_(),
        "syn_lr": torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True),
        "student_net": lambda x, flat_param: flat(flat_param, x),
        "student_params": [problem.start.clone().requires_grad_()],
        "starting_params": problem.start,
        "target_params": problem.target,
        "criterion": nn.CrossEntropyLoss(),
        "num_params": flat.size,
    }
    return names | more


def _flat_experts(folder: Path, problem: PeerProblem) -> dict[str, Any]:
    sys.path[:0] = [str(folder / "buffer"), str(folder / "distill")]
    gsam, average = importlib.import_module("gsam"), importlib.import_module("model_ema")
    found: dict[str, Any] = {}
    for adaptive in (True, False):
        network = convnet((2, 8, 8), CLASSES, depth=2, width=4).double()
        parameters = list(network.parameters())
        nn.utils.vector_to_parameters(problem.start.clone(), parameters)
        base = torch.optim.SGD(parameters, lr=RATE, momentum=0.0, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.StepLR(base, step_size=10**6, gamma=1)
        rho = gsam.ProportionScheduler(schedule, RATE, RATE, RHO, RHO)
        optimiser = gsam.GSAM(
            parameters, base, network, gsam_alpha=GSAM_ALPHA, rho_scheduler=rho, adaptive=adaptive
        )
        optimiser.set_closure(nn.CrossEntropyLoss(), problem.images, problem.labels)
        losses = []
        for _ in range(ITERATIONS):
            _, loss = optimiser.step()
            losses.append(float(loss))
        theta = nn.utils.parameters_to_vector(parameters)
        found["adaptive" if adaptive else "plain"] = {
            "losses": losses,
            "moved": digest(theta - problem.start),
        }
    images = problem.images.clone()
    ema = average.ModelEmaV2([images], decay=DECAY)
    for k in range(ITERATIONS):
        images += wave(images.shape, 20 + k)
        ema.update([images])
    found["average"] = digest(ema.module[0])
    return found


def _tesla(folder: Path, problem: PeerProblem) -> dict[str, Any]:
    source = folder / "distill.py"
    names = _names(problem)
    names["label_syn"] = problem.labels
    with _doubles():
        names["param_dist"] = (problem.start - problem.target).square().sum()
        _execute(_statements(source, "syn_images = ", "syn_lr.grad = "), names)
    return {
        "indices": [index.tolist() for index in names["indices_chunks_copy"]],
        "loss": names["grand_loss"].item(),
        "images": digest(names["syn_images"].grad),
        "alpha": float(names["syn_lr"].grad),
    }


def _datm(folder: Path, problem: PeerProblem) -> dict[str, Any]:
    source = folder / "distill" / "DATM.py"
    bounds = []
    for first, last, end in SCHEDULE:
        arguments = types.SimpleNamespace(
            Sequential_Generation=True,
            current_max_start_epoch=first,
            max_start_epoch=last,
            expansion_end_epoch=end,
        )
        names: dict[str, Any] = {"args": arguments}
        (statement,) = _statements(
            source, "if args.Sequential_Generation", "if args.Sequential_Generation"
        )
        for it in range(0, end + 2, max(1, end // 20)):
            names["it"] = it
            _execute([statement], names)
            bounds.append([it, int(names["Upper_Bound"])])

    # The labels that images start from: the statements are nested, so they are found by themselves.
    text = source.read_text("utf-8")
    tree = ast.parse(text)
    wanted = ("logits_tensor", "average_logits_per_image")
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        starts = [ast.unparse(s).partition(" = ")[0] for s in body]
        if all(name in starts for name in wanted):
            part = body[starts.index(wanted[0]) : starts.index(wanted[1]) + 1]
            names = {"torch": torch, "label_syn": problem.labels}
            names["logits"] = list(problem.expert_logits)
            with _doubles():
                _execute(part, names)
            started = names["average_logits_per_image"]
            break
    else:
        raise SystemExit(f"{source}: no labels from logits: another version of it?")

    steps: dict[str, Any] = {}
    for name, limit in LIMITS.items():
        names = _names(problem)
        names["args"].threshold = limit
        names["label_syn"] = problem.logits.clone().requires_grad_()
        names["wandb"] = types.SimpleNamespace(log=lambda *_, **__: None)
        names |= {"start_epoch": 0, "it": 1}
        _execute(_statements(source, "def SoftCrossEntropy", "criterion = "), names)
        tensors = {"images": "image_syn", "alpha": "syn_lr", "labels": "label_syn"}
        for key, short in (("images", "img"), ("alpha", "lr"), ("labels", "y")):
            names[f"optimizer_{short}"] = torch.optim.SGD(
                [names[tensors[key]]], lr=RATES[key], momentum=MOMENTUM[key]
            )
        seen_indices, losses = [], []
        original = torch.randperm
        with _doubles():
            for _ in range(ITERATIONS):
                drawn: list[Tensor] = []

                def randperm(
                    count: int, drawn: list[Tensor] = drawn, draw: Any = original
                ) -> Tensor:
                    drawn.append(draw(count))
                    return drawn[-1]

                names["student_params"] = [problem.start.clone().requires_grad_()]
                with mock.patch.object(torch, "randperm", randperm):
                    _execute(
                        _statements(source, "syn_images = ", "if grand_loss <= args.threshold"),
                        names,
                    )
                chunks = [list(reversed(p.split(BATCH))) for p in drawn]
                seen_indices.append([c.tolist() for each in chunks for c in each][:STEPS])
                losses.append(names["grand_loss"].item())
        steps[name] = {"indices": seen_indices, "losses": losses} | {
            key: digest(names[tensors[key]]) for key in tensors
        }
    return {"bounds": bounds, "started": digest(started), "steps": steps}


def main() -> None:
    """Run the published codes and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("ftd", "datm", "tesla"):
        parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument(f"--{name}-commit", default="")
    asked = parser.parse_args()
    problem = PeerProblem()
    commits = {}
    for name in ("ftd", "datm", "tesla"):
        given = getattr(asked, f"{name}_commit")
        folder = getattr(asked, name)
        commits[name] = (
            given
            or subprocess.run(
                ["git", "-C", folder, "rev-parse", "HEAD"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
        )
    results = read_json(RESULTS) if RESULTS.exists() else {}
    results["peers"] = {
        "commits": commits,
        "torch": torch.__version__,
        "ftd": _flat_experts(asked.ftd, problem),
        "tesla": _tesla(asked.tesla, problem),
        "datm": _datm(asked.datm, problem),
    }
    write_json(RESULTS, results)


if __name__ == "__main__":
    main()
