"""What attacking normalised pixels, clamped to [0,1], measures: docs/studies/normalised-pixels.md.

    python scripts/study_normalised.py measure RUN [RUN ...] --write FILE.json [--data-root DIR]
    python scripts/study_normalised.py draw FILE.md

RUN is the folder of a finished run with its students (`cells/`), whose track normalises; NAME=RUN
gives it a name of its own, such as that of the method whose set it judges. Each student is judged
in three spaces on the same images:

- pixels: ours. The attack moves pixels inside [0,1]; the normalisation is a layer of the model.
- published: the attack gets normalised images z and clamps them to [0,1], as a peer board's code
  does that never tells its library of the normalisation. Every pixel darker than the mean becomes
  the mean.
- normalised: the same attack, clamped to what a pixel in [0,1] can become. What it gives above
  "published" is what the clamp costs without any adversary.

The published protocol: L-inf 8/255 by FGSM, and by PGD with 10 steps of 2/225 from the image
itself; L2 128/255 by 10 steps of 15/255; targeted attacks aim at label + 1. The formulas are those
of the library it calls.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdd_bench.config import build_config
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.evaluation.outcomes import pack_bits, unpack_bits
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.statistics.comparison import compare
from robustdd_bench.files import read_json, write_json, write_text
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.work import threads
from robustdd_bench.text.tables import markdown, marked

EPS, STEP = 8 / 255, 2 / 225
L2_EPS, L2_STEP = 128 / 255, 15 / 255
STEPS = 10
TINY = 1e-10
PIXELS = "pixels"

Answer = Callable[[Tensor], Tensor]
Clamp = Callable[[Tensor], Tensor]


def gradient(answer: Answer, z: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """Where to go to be wrong, or to be at the target: (B,C,H,W)."""
    at = z.detach().requires_grad_()
    loss = F.cross_entropy(answer(at), labels)
    (found,) = torch.autograd.grad(-loss if targeted else loss, at)
    return found


def fgsm(answer: Answer, z: Tensor, labels: Tensor, clamp: Clamp, targeted: bool) -> Tensor:
    """One signed step of eps."""
    return clamp(z + EPS * gradient(answer, z, labels, targeted).sign())


def pgd(answer: Answer, z: Tensor, labels: Tensor, clamp: Clamp, targeted: bool) -> Tensor:
    """Signed steps from the image itself, projected onto the ball and clamped."""
    at = z
    for _ in range(STEPS):
        at = at + STEP * gradient(answer, at, labels, targeted).sign()
        at = clamp(z + (at - z).clamp(-EPS, EPS))
    return at


def pgd_l2(answer: Answer, z: Tensor, labels: Tensor, clamp: Clamp, targeted: bool) -> Tensor:
    """Steps along the gradient's direction, projected onto the L2 ball and clamped."""

    def length(x: Tensor) -> Tensor:
        found: Tensor = x.flatten(1).norm(dim=1)
        return found[:, None, None, None]

    at = z
    for _ in range(STEPS):
        found = gradient(answer, at, labels, targeted)
        at = at + L2_STEP * found / (length(found) + TINY)
        delta = at - z
        at = clamp(z + delta * (L2_EPS / (length(delta) + TINY)).clamp(max=1.0))
    return at


def nothing(answer: Answer, z: Tensor, labels: Tensor, clamp: Clamp, targeted: bool) -> Tensor:
    """The image, clamped."""
    return clamp(z)


ATTACKS = {
    "no attack": (nothing, False),
    "FGSM 8/255": (fgsm, False),
    "PGD 8/255": (pgd, False),
    "PGD-L2 128/255": (pgd_l2, False),
    "PGD 8/255, targeted": (pgd, True),
}


def normalised_spaces(student: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Who is still right after each attack in both normalised spaces: names to bits (N,)."""
    assert isinstance(student, nn.Sequential)
    layer, body = student
    z = layer(images)
    low, high = layer(torch.zeros_like(images)), layer(torch.ones_like(images))
    clamps: dict[str, Clamp] = {
        "published": lambda x: x.clamp(0, 1),
        "normalised": lambda x: torch.maximum(torch.minimum(x, high), low),
    }
    target = (labels + 1) % int(body(z[:1]).shape[1])
    found = {}
    for space, clamp in clamps.items():
        for name, (attack, targeted) in ATTACKS.items():
            moved = attack(body, z, target if targeted else labels, clamp, targeted)
            with torch.no_grad():
                found[f"{space}: {name}"] = body(moved).argmax(1) == labels
    return found


def judge(
    context: RunContext, registry: Registry, index: int, examples: int | None
) -> dict[str, Tensor]:
    """Who is still right by each measure, of one student and the first images."""
    student, data = context.student(index), context.evaluation
    images, labels = data.pixels()[:examples], data.labels[:examples]
    found: dict[str, list[Tensor]] = {}
    size = context.plan.track.threat.batch_size
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        for name, bits in normalised_spaces(student, x, y).items():
            found.setdefault(name, []).append(bits)
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    kind = registry.get("attacks", "pgd").load()
    tool = kind(build_config(kind.Config, {"steps": STEPS}, "pgd"))
    seed = context.seeds.shared().seed("attack", "pgd", index)
    right = classified(student, images, labels, size)
    ours = {f"{PIXELS}: no attack": right}
    for eps in sorted({context.plan.track.threat.headline, EPS}):
        threat = context.threat(eps)
        outcome = attack_student(student, images, labels, tool, threat, seed, size, right)
        ours[f"{PIXELS}: PGD {eps_label(eps)}"] = outcome.robust
    return ours | joined


def measure(
    name: str, run: Path, registry: Registry, data_root: Path, examples: int | None
) -> dict[str, Any]:
    """What is kept of a run: outcomes of each student by each measure.

    Raises:
        UsageError: the run's track does not normalise, or it was made by another installation.
    """
    record = read_record(run / "record.json")
    plan = record.plan()
    context = RunContext(plan, registry, run.parents[2], data_root)
    if context.folder.resolve() != run.resolve():
        raise UsageError(f"{run} was not made by what is installed here")
    if plan.track.preprocessing.kind != "normalise":
        raise UsageError(f"{run}: track {plan.track.name} does not normalise")
    with threads(1):
        count = plan.track.students.count
        students = [judge(context, registry, r, examples) for r in range(count)]
    return {
        "method": name or plan.method,
        "settings": {k: v for k, v in plan.config.items() if k in ("eps", "ema", "flavour")},
        "track": plan.track.id,
        "split": plan.split,
        "run_id": record.run_id,
        "examples": len(context.evaluation.labels[:examples]),
        "headline": f"{PIXELS}: PGD {eps_label(plan.track.threat.headline)}",
        "bits": {name: [pack_bits(s[name]) for s in students] for name in students[0]},
    }


def bits(row: dict[str, Any], name: str) -> np.ndarray:
    """Outcomes (R,N) of a run by a measure."""
    return np.stack([unpack_bits(text).numpy().astype(bool) for text in row["bits"][name]])


def label(row: dict[str, Any]) -> str:
    """A run's method, with what tells runs of one method apart."""
    settings = row["settings"]
    if row["method"] != "mat" or "eps" not in settings:
        return str(row["method"])
    return (
        f"mat (experts at {eps_label(settings['eps'])})" if settings["eps"] > 0 else "mat (eps 0)"
    )


def place(name: str) -> tuple[int, int, str]:
    """Where a measure stands in the table: by space, then by attack."""
    space, _, attack = name.partition(": ")
    known = list(ATTACKS)
    at = known.index(attack) if attack in known else len(known)
    return [PIXELS, "normalised", "published"].index(space), at, attack


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracies in %, a line a measure, a column a run."""
    names = sorted(rows[0]["bits"], key=place)
    lines = [[name, *(f"{100 * bits(row, name).mean():.1f}" for row in rows)] for name in names]
    return markdown(["measure", *(label(row) for row in rows)], lines)


def changed_table(rows: Sequence[dict[str, Any]], ours: str, theirs: str) -> str:
    """Each pair of runs by both measures, with intervals, where what they say differs."""
    lines = []
    for a, b in itertools.combinations(rows, 2):
        said = []
        for name in (ours, theirs):
            one, other = (bits(row, name)[None, None] for row in (a, b))
            found = compare(one, other)[0]
            low, high = 100 * found.interval.low, 100 * found.interval.high
            verdict = "level" if found.interval.holds_zero else "above" if low > 0 else "below"
            said.append((verdict, f"{100 * found.difference:+.1f} ({low:.1f} to {high:.1f})"))
        if said[0][0] != said[1][0]:
            pair = f"{label(a)} less {label(b)}"
            lines.append([pair, said[0][1], said[1][1], f"{said[0][0]} -> {said[1][0]}"])
    if not lines:
        return f"No pair's order changes from {ours} to {theirs}."
    return markdown(["pair", ours, theirs, "what is said"], lines)


def tables(results: dict[str, Any]) -> str:
    """Markdown: for each track the accuracies, and which orders change."""
    parts = []
    for track in dict.fromkeys(row["track"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["track"] == track]
        students = len(next(iter(rows[0]["bits"].values())))
        kind, examples = rows[0]["split"], rows[0]["examples"]
        parts.append(
            f"### {track}\n\nAccuracy in %, mean over {students} students, {examples} {kind} "
            "images, one set a method.\n"
        )
        parts.append(accuracy_table(rows))
        ours = rows[0]["headline"]
        parts.append(
            "\nPairs of which two measures say different things; differences in points, with 95 % "
            "intervals over students and examples.\n"
        )
        for measure_ in (ours, "normalised: PGD-L2 128/255"):
            theirs = "published: PGD" + ("-L2 128/255" if "L2" in measure_ else " 8/255")
            parts += [changed_table(rows, measure_, theirs), ""]
    return "\n".join(parts).strip()


def draw(path: Path) -> None:
    """Write the tables between the marks of a study."""
    made = tables(read_json(path.with_suffix(".json")))
    text = path.read_text(encoding="utf-8")
    write_text(path, marked(text, "tables", f"{made}\n", str(path)))


def main() -> int:
    """Parse the call; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    measuring = actions.add_parser("measure")
    measuring.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    measuring.add_argument("--write", type=Path, required=True, metavar="FILE")
    measuring.add_argument("--examples", type=int, help="only so many images, from the start")
    measuring.add_argument("--data-root", type=Path, default=Path("data"))
    drawing = actions.add_parser("draw")
    drawing.add_argument("study", type=Path, metavar="FILE.md")
    call = parser.parse_args()
    try:
        if call.action == "draw":
            draw(call.study)
        else:
            measure_all(call)
    except (RobustDDError, OSError) as error:
        parser.error(str(error))
    return 0


def measure_all(call: argparse.Namespace) -> None:
    """Measure the runs of a call; the file is written anew after each."""
    registry = collect(get_plugin_manager())
    kept = read_json(call.write)["rows"] if call.write.exists() else []
    rows = {row["run_id"]: row for row in kept}
    for text in call.runs:
        name, _, run = text.rpartition("=")
        row = measure(name, Path(run), registry, call.data_root, call.examples)
        rows[row["run_id"]] = row
        print(f"{row['method']} on {row['track']}: {row['run_id']}", file=sys.stderr, flush=True)
        write_json(call.write, {"schema_version": 1, "rows": list(rows.values())})


if __name__ == "__main__":
    sys.exit(main())
