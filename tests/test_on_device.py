"""Every part of a run on a simulated GPU: the CPU's results, steps captured, nothing waited for.

See simulated_device.py for what such a device tells and what only a GPU can.
"""

import copy
import dataclasses

import pytest
import torch
from attack_models import quick_attack, registered_attacks
from robustdd_datm.distiller import DATM
from robustdd_dc.distillers import DSA
from robustdd_dm.distiller import DM
from robustdd_ftd.distiller import FTD
from robustdd_idm.distiller import IDM
from robustdd_mat.distiller import MAT
from robustdd_mtt.distiller import MTT
from robustdd_rome.distiller import ROME
from robustdd_tesla.distiller import TESLA
from simulated_device import CUDA, simulated_gpu
from small_runs import plan_of, run
from tasks import SMALL, RecordingReporter, digits_task
from test_students import fresh, small_set, spec_of

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_students
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.tracks import AdversarialSpec
from robustdd_bench.seeds import Seeds, isolated_rng
from robustdd_bench.toolkit.checkpoint import Checkpoint
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert

DSA_FAMILIES = "color_crop_cutout_scale_rotate"
RECIPE = ExpertRecipe(
    epochs=2,
    learning_rate=0.05,
    batch_size=16,
    momentum=0.9,
    weight_decay=1e-3,
    ema=0.9,
    augmentation=DSA_FAMILIES,
)
QUEUE = {"iterations": 3, "batch_real": 8, "fresh_every": 2, "networks_max": 4, "train_steps": 2}
GRADIENTS = {"iterations": 2, "outer": 2, "inner": 1, "batch_real": 8, "batch_train": 6}


def on_both(work, tmp_path, **options):
    """What `work(task, reporter)` gives on the CPU and on the device; the device; its notes."""
    expected = work(digits_task(tmp_path / "cpu", per_class=9, **options), RecordingReporter())
    reporter = RecordingReporter()
    with simulated_gpu() as gpu:
        task = digits_task(tmp_path / "gpu", per_class=9, device="cuda", **options)
        found = work(task, reporter)
        if isinstance(found, DistilledSet):
            assert found.images.device == CUDA
            images, labels = found.images.cpu(), found.labels.cpu()
            found = dataclasses.replace(found, images=images, labels=labels)
    return expected, found, gpu, reporter.notes


@pytest.mark.parametrize(
    ("flavour", "norm", "uint8"),
    [("natural", "Linf", True), ("pgd", "Linf", True), ("fast", "Linf", False),
     ("trades", "Linf", False), ("mart", "L2", False), ("flat", "Linf", True)],
)  # fmt: skip
def test_experts(flavour, norm, uint8, tmp_path) -> None:
    if flavour == "flat":
        recipe = dataclasses.replace(RECIPE, gsam_rho=0.1, gsam_alpha=0.3, gsam_adaptive=True)
    else:
        recipe = dataclasses.replace(
            RECIPE, flavour=flavour, norm=norm, eps=0.1, attack_steps=2, attack_step_size=0.05
        )

    def work(task, reporter):
        recipe_ = recipe.canonical()
        return train_expert(task, recipe_, family_seeds(task.seeds), 0, reporter).snapshots

    expected, found, gpu, notes = on_both(work, tmp_path, uint8=uint8)
    assert torch.equal(found, expected)
    assert notes == []
    assert gpu.replays > len(gpu.graphs) > 0


DISTILLERS = {
    "dsa": DSA(DSA.Config(**GRADIENTS)),
    "dm": DM(DM.Config(iterations=4, batch_real=8)),
    "idm": IDM(IDM.Config(**QUEUE)),
    "rome": ROME(ROME.Config(**QUEUE, attack_steps=2)),
    "mat": MAT(MAT.Config(**SMALL, attack_steps=2, joint_weight=0.5, joint_batch=8)),
    "labels, batches, zca": MTT(
        MTT.Config(
            **SMALL, student_batch=5, learn_labels=True, preprocessing="zca", alpha_space="linear",
            alpha_optimiser="sgd", expert_augmentation="color_scale",
        )
    ),
    "ftd": FTD(FTD.Config(**SMALL, rho=0.1, image_ema=0.9)),
    "datm": DATM(
        DATM.Config(
            **SMALL | {"image_optimiser": "sgd"}, first_start_epochs=1, growth_iterations=2,
            loss_limit=0.99, label_epoch=2,
        )
    ),
    "tesla": TESLA(TESLA.Config(**SMALL, teacher_labels=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTILLERS)
def test_distillers(name, tmp_path) -> None:
    distiller = DISTILLERS[name]

    def work(task, reporter):
        task = dataclasses.replace(task, augmentation=DSA_FAMILIES)
        if hasattr(distiller, "parts"):
            for part in distiller.parts(task):
                distiller.make_part(part, task, reporter)
        return distiller.distill(task, reporter)

    expected, found, gpu, notes = on_both(work, tmp_path)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert found.learning_rate == expected.learning_rate
    assert notes == []
    if name != "labels, batches, zca":
        assert gpu.replays > len(gpu.graphs) > 0


@pytest.mark.parametrize(
    ("flavour", "soft"), [(None, False), (None, True), ("pgd", True), ("trades", False)]
)
def test_students(flavour, soft) -> None:
    adversarial = flavour and AdversarialSpec(flavour=flavour, eps=0.05, steps=2)
    spec = spec_of(adversarial=adversarial, weight_decay=1e-3, augmentation="color_crop_scale")
    distilled, notes = small_set(soft=soft), RecordingReporter()

    def train(reporter, device):
        network = fresh().to(device)
        return train_student(
            network, distilled, spec, Seeds(3, "track"), 0, flip=False, reporter=reporter
        )

    expected = train(RecordingReporter(), "cpu")
    with simulated_gpu() as gpu:
        found = train(notes, "cuda")
        assert found.sha256() == expected.sha256()
    assert (found.final_loss, found.train_accuracy) == (
        expected.final_loss,
        expected.train_accuracy,
    )
    assert notes.notes == []
    assert gpu.replays > len(gpu.graphs) > 0


def victims_of(count):
    """Three networks, so many images and labels."""
    networks = []
    for r in range(3):
        with isolated_rng(r):
            networks.append(convnet((1, 8, 8), 10, depth=2, width=4).eval())
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([n(images).argmax(1) for n in networks]).mode(0).values
    return networks, images, labels


@pytest.fixture(scope="module")
def victims():
    return victims_of(7)


@pytest.mark.parametrize("name", registered_attacks())
def test_attacks(name, victims) -> None:
    """On the device students are attacked together, on the CPU one by one."""
    attack = quick_attack(name)
    threat = ThreatModel("Linf", 0.08) if "Linf" in attack.norms else ThreatModel("L2", 0.6)

    def fare(device):
        networks, images, labels = copy.deepcopy(victims)
        models = [network.to(device) for network in networks]
        x, y = images.to(device), labels.to(device)
        right = [classified(model, x, y, 4) for model in models]
        found = attack_students(models, x, y, attack, threat, [5, 6, 7], 4, right)
        return [(each.robust.tolist(), each.violations, each.warnings) for each in found]

    expected = fare("cpu")
    with simulated_gpu():
        assert fare("cuda") == expected


class Silent(RecordingReporter):
    """Takes values and leaves them where they are."""

    def metrics(self, step, **values):
        pass


def expert_of(per_class):
    def work(tmp_path):
        task = digits_task(tmp_path, per_class=per_class, device="cuda")
        recipe = dataclasses.replace(
            RECIPE, epochs=1, augmentation="color", flavour="pgd", eps=0.1, attack_steps=2
        )
        train_expert(task, recipe, family_seeds(task.seeds), 0, Silent())

    return work


def distilled_by(distiller, count):
    def work(tmp_path):
        config = dataclasses.replace(distiller.config, iterations=count)
        task = digits_task(tmp_path, per_class=9, device="cuda")
        task = dataclasses.replace(task, augmentation="color")
        method = type(distiller)(config)
        if hasattr(method, "parts"):
            for part in method.parts(task):
                method.make_part(part, task, Silent())
        method.distill(task, Silent())

    return work


def student_of(epochs):
    def work(_):
        spec = spec_of(epochs=epochs, adversarial=AdversarialSpec(flavour="pgd", eps=0.1, steps=2))
        network, seeds = fresh().to("cuda"), Seeds(3, "track")
        train_student(network, small_set(), spec, seeds, 0, flip=False, reporter=Silent())

    return work


LOOPS = {
    "experts": (expert_of(9), expert_of(18)),
    "students": (student_of(2), student_of(4)),
    **{
        name: (distilled_by(DISTILLERS[name], 2), distilled_by(DISTILLERS[name], 4))
        for name in DISTILLERS
    },
}
"""Each loop with some steps, and with twice as many of the same kind."""


@pytest.mark.parametrize("name", LOOPS)
def test_a_step_waits_for_nothing_and_is_started_at_once(name, tmp_path, monkeypatch) -> None:
    # A checkpoint reads the state, and goes by the clock.
    monkeypatch.setattr(Checkpoint, "maybe_save", lambda *_: False)
    syncs, started = {}, {}
    for mode in ("off", "auto"):
        monkeypatch.setenv("ROBUSTDD_CAPTURE", mode)
        for length, work in zip(("short", "long"), LOOPS[name], strict=True):
            with simulated_gpu() as gpu:
                work(tmp_path / mode / length)
            syncs[mode, length] = gpu.syncs
            started[mode, length] = gpu.launches + gpu.replays
    # A new graph is held against an eager step, and that waits; so the comparison is without.
    assert syncs["off", "long"] == syncs["off", "short"]
    more = {mode: started[mode, "long"] - started[mode, "short"] for mode in ("off", "auto")}
    assert 0 < more["auto"] < more["off"] / 3


def test_a_whole_run_and_its_record(tmp_path) -> None:
    expected = run(plan_of("mat"), tmp_path / "cpu")
    with simulated_gpu() as gpu:
        found = run(plan_of("mat", device="cuda"), tmp_path / "gpu")
    assert found.record.aggregates == expected.record.aggregates
    assert found.record.distilled == expected.record.distilled
    assert (expected.record.device, found.record.device) == ("cpu", "cuda")
    assert found.record.costs.environment["captured_steps"] is True
    assert "not captured" not in (found.folder / "run.log").read_text()
    assert gpu.replays > 0
