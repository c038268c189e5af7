import dataclasses
import errno
import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from tasks import RecordingReporter, digits_task

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import OverfittingGuard
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.expert_training import _Training
from robustdd_bench.toolkit.trajectories.experts import (
    ExpertRecipe,
    ExpertStore,
    family_seeds,
    train_expert,
)

RECIPE = ExpertRecipe(epochs=3, learning_rate=0.05, batch_size=32)
PGD = dataclasses.replace(RECIPE, flavour="pgd", eps=0.1, attack_steps=2, attack_step_size=0.05)


def train(task, recipe=RECIPE, index=0, reporter=None):
    seeds = family_seeds(task.seeds)
    return train_expert(task, recipe, seeds, index, reporter or RecordingReporter())


@pytest.fixture
def task(tmp_path):
    return digits_task(tmp_path)


def naive_expert(task, recipe, index):
    """Natural training by a module and torch's SGD, the average by its formula in float64."""
    seeds = family_seeds(task.seeds)
    network = task.network(seeds.seed("expert-init", index))
    order = seeds.generator("expert-order", index)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )

    def weights():
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    phi = weights().double()
    snapshots = [phi.clone()]
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(task.images), generator=order).split(recipe.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(network(task.images[batch]), task.labels[batch]).backward()
            optimiser.step()
            phi = recipe.ema * phi + (1 - recipe.ema) * weights().double()
        snapshots.append(phi.clone())
    return torch.stack(snapshots)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("ema", [0.0, 0.9, 0.999])
def test_trajectories_are_those_of_a_plain_loop_with_the_average_by_its_formula(
    task, momentum, weight_decay, ema
):
    recipe = dataclasses.replace(RECIPE, momentum=momentum, weight_decay=weight_decay, ema=ema)
    snapshots = train(task, recipe).snapshots
    torch.testing.assert_close(
        snapshots.double(), naive_expert(task, recipe, 0), rtol=1e-4, atol=1e-5
    )


def test_the_first_snapshot_is_the_initialisation_and_all_are_true_copies(task):
    expert = train(task)
    snapshots, losses = expert.snapshots, expert.losses
    seed = family_seeds(task.seeds).seed("expert-init", 0)
    assert torch.equal(snapshots[0], FlatNetwork(task.network(seed)).theta())
    assert len(snapshots) == RECIPE.epochs + 1
    assert len(losses) == RECIPE.epochs
    for earlier, later in itertools.pairwise(snapshots):
        assert (earlier - later).abs().max() > 1e-4


@pytest.mark.parametrize("recipe", [RECIPE, PGD])
def test_the_seed_and_the_number_decide_and_the_global_generator_is_left_alone(tmp_path, recipe):
    before = torch.random.get_rng_state()
    one, again, other = (train(digits_task(tmp_path), recipe, k).snapshots for k in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, train(digits_task(tmp_path, seed=1), recipe).snapshots)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_average_changes_what_is_kept_and_not_what_is_trained(task):
    one, two = train(task), train(task, dataclasses.replace(RECIPE, ema=0.9))
    plain, smooth = one.snapshots, two.snapshots
    assert one.losses == two.losses
    assert (smooth[-1] - smooth[0]).norm() < (plain[-1] - plain[0]).norm()


@pytest.mark.parametrize("flavour", ["pgd", "fast", "trades", "mart"])
def test_adversarial_experts_go_another_way(task, flavour):
    recipe = dataclasses.replace(PGD, flavour=flavour)
    assert not torch.equal(train(task).snapshots, train(task, recipe).snapshots)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_of_radius_zero_is_natural_training_bit_for_bit(task, norm):
    # Not by the canonical form: the attack is run, and finds nothing.
    recipe = dataclasses.replace(PGD, norm=norm, eps=0.0, attack_step_size=0.0)
    assert torch.equal(train(task, recipe).snapshots, train(task).snapshots)


@pytest.mark.parametrize("recipe", [RECIPE, PGD])
@pytest.mark.parametrize("uint8", [False, True])
def test_a_step_finds_everything_where_the_first_one_did(tmp_path, recipe, uint8, monkeypatch):
    recipe = dataclasses.replace(
        recipe, ema=0.9, momentum=0.9, weight_decay=1e-3, augmentation="color_crop_rotate"
    )
    plain = train(digits_task(tmp_path, uint8=uint8), recipe)
    # Captured steps, rehearsed: the first function of each kind of step stands for all later ones.
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")
    rehearsed = train(digits_task(tmp_path, uint8=uint8), recipe)
    assert torch.equal(plain.snapshots, rehearsed.snapshots)
    assert plain.losses == rehearsed.losses


def test_bytes_train_as_the_floats_that_they_stand_for(tmp_path):
    task = digits_task(tmp_path, uint8=True)
    floats = dataclasses.replace(task, images=task.pixels())
    assert torch.equal(train(task, PGD).snapshots, train(floats, PGD).snapshots)


def test_the_loss_falls_and_the_accuracy_is_that_of_the_last_snapshot(tmp_path):
    task = digits_task(tmp_path, per_class=40)
    recipe = ExpertRecipe(epochs=12, learning_rate=0.1, batch_size=16)
    expert = train(task, recipe)
    snapshots, accuracy = expert.snapshots, expert.accuracy
    assert expert.losses[-1] < 0.2 * expert.losses[0]
    network = FlatNetwork(task.network(0))
    hits = network(snapshots[-1], task.images).argmax(1) == task.labels
    assert accuracy == pytest.approx(float(hits.float().mean()))
    assert accuracy > 0.9


def test_a_diverging_expert_says_so_and_leaves_no_file(task):
    store = ExpertStore(task, dataclasses.replace(RECIPE, learning_rate=1e30))
    (part,) = store.parts(1)
    with pytest.raises(RunFailedError, match=r"expert 0 diverged in epoch 1.*lower expert_lr"):
        store.train(part, RecordingReporter())
    assert not store.folder.exists()


def test_fast_training_takes_one_step_of_five_quarters_of_eps(task):
    fast = dataclasses.replace(PGD, flavour="fast").canonical()
    assert (fast.attack_steps, fast.attack_step_size) == (1, 0.125)
    slow = dataclasses.replace(PGD, attack_steps=1, attack_step_size=0.125)
    assert torch.equal(train(task, fast).snapshots, train(task, slow).snapshots)


def test_fast_training_watches_accuracy_under_pgd_and_the_watch_changes_nothing(task):
    fast = dataclasses.replace(PGD, flavour="fast").canonical()
    expert = train(task, fast)
    assert len(expert.guard) == RECIPE.epochs
    assert all(0 <= accuracy <= 1 for accuracy in expert.guard)
    assert train(task, PGD).guard == []
    # One epoch more, and with it one look of the guard more: the epochs before are the same.
    longer = train(task, dataclasses.replace(fast, epochs=4))
    assert torch.equal(longer.snapshots[:4], expert.snapshots)
    assert longer.guard[:3] == expert.guard


@pytest.mark.parametrize(("fall", "collapses"), [(0.19, False), (0.21, True)])
def test_a_collapse_of_fast_training_stops_the_expert_and_leaves_no_file(
    task, monkeypatch, fall, collapses
):
    measured = iter([0.4, 0.6, 0.6 - fall])
    monkeypatch.setattr(OverfittingGuard, "measure", lambda *_: next(measured))
    store = ExpertStore(task, dataclasses.replace(PGD, flavour="fast"))
    (part,) = store.parts(1)
    if not collapses:
        store.train(part, RecordingReporter())
        assert part.output.exists()
        return
    with pytest.raises(RunFailedError, match=r"collapsed in epoch 3 .* from 60% to 39%.*flavour"):
        store.train(part, RecordingReporter())
    assert not store.folder.exists()


# Flat experts.


def naive_gsam(task, recipe, index):
    """GSAM by its formulas, tensor by tensor, in float64."""
    seeds = family_seeds(task.seeds)
    network = task.network(seeds.seed("expert-init", index)).double()
    weights = [p for p in network.parameters() if p.requires_grad]
    order = seeds.generator("expert-order", index)

    def gradients(x, y):
        return torch.autograd.grad(F.cross_entropy(network(x), y), weights)

    def norm(tensors):
        return sum((t**2).sum() for t in tensors).sqrt()

    snapshots = [torch.cat([w.detach().flatten() for w in weights])]
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(task.images), generator=order).split(recipe.batch_size):
            x, y = task.images[batch].double(), task.labels[batch]
            here = [w.detach().clone() for w in weights]
            scale = [w.abs() if recipe.gsam_adaptive else torch.ones_like(w) for w in here]
            old = gradients(x, y)
            length = norm([s * g for s, g in zip(scale, old, strict=True)])
            with torch.no_grad():
                for w, s, g in zip(weights, scale, old, strict=True):
                    w.add_(recipe.gsam_rho * s**2 * g / length)
            new = gradients(x, y)
            share = sum((a * b).sum() for a, b in zip(old, new, strict=True)) / norm(new) ** 2
            with torch.no_grad():
                for w, origin, a, b in zip(weights, here, old, new, strict=True):
                    step = b - recipe.gsam_alpha * (a - share * b)
                    step = step + recipe.weight_decay * origin
                    w.copy_(origin - recipe.learning_rate * step)
        snapshots.append(torch.cat([w.detach().flatten() for w in weights]))
    return torch.stack(snapshots)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_flat_experts_are_those_of_gsams_formulas_in_float64(task, adaptive, weight_decay):
    build, images = task.network, task.images.double()
    task64 = dataclasses.replace(task, images=images, network=lambda seed: build(seed).double())
    recipe = dataclasses.replace(
        RECIPE, gsam_rho=0.2, gsam_alpha=0.3, gsam_adaptive=adaptive, weight_decay=weight_decay
    )
    # Before the networks of the task, which share a layer, are turned to float64.
    single = train(task, recipe).snapshots
    plain = train(task, dataclasses.replace(RECIPE, weight_decay=weight_decay)).snapshots
    seeds = family_seeds(task.seeds)
    training = _Training(task64, recipe, seeds, 0, RecordingReporter())
    order = seeds.generator("expert-order", 0)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(task.images), generator=order).split(recipe.batch_size):
            training.step(batch)
    naive = naive_gsam(task, recipe, 0)
    torch.testing.assert_close(training.snapshot(), naive[-1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(single.double(), naive, rtol=1e-4, atol=1e-5)
    assert (naive - plain).abs().max() > 1e-3


def test_a_flat_experts_minimum_is_flatter(tmp_path):
    task = digits_task(tmp_path, per_class=40)
    recipe = ExpertRecipe(epochs=12, learning_rate=0.1, batch_size=16)
    network, rises = FlatNetwork(task.network(0)), []
    for rho in (0.0, 0.3):
        theta = train(task, dataclasses.replace(recipe, gsam_rho=rho)).snapshots[-1]
        leaf = theta.clone().requires_grad_()
        loss = F.cross_entropy(network(leaf, task.images), task.labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        worse = theta + 0.3 * gradient / gradient.norm()
        rises.append(
            float(F.cross_entropy(network(worse, task.images), task.labels) - loss.detach())
        )
    assert 0 < rises[1] < 0.7 * rises[0]


@pytest.mark.parametrize("bad", [{"gsam_rho": -0.1}, {"gsam_alpha": -1.0}])
def test_negative_values_of_gsam_are_refused(bad):
    with pytest.raises(ValueError, match="gsam_rho and gsam_alpha must not be negative"):
        dataclasses.replace(RECIPE, **bad)


# The store.


def stored(task, recipe=RECIPE, count=2):
    store = ExpertStore(task, recipe)
    for part in store.parts(count):
        store.train(part, RecordingReporter())
    return store


def test_what_is_stored_comes_back(task):
    store = stored(task)
    loaded = store.load(2)
    assert len(loaded) == 2
    for k in range(2):
        snapshots = train(task, RECIPE, k).snapshots
        for epoch in range(RECIPE.epochs + 1):
            assert torch.equal(loaded.at(k, epoch), snapshots[epoch])


def test_a_stored_expert_says_what_it_is(task):
    store = stored(task, count=1)
    _, metadata = read_safetensors(store.parts(1)[0].output)
    assert set(metadata) >= {"format", "description", "train_accuracy", "losses"}
    assert 0 < float(metadata["train_accuracy"]) <= 1


def test_the_key_tells_apart_everything_that_shapes_a_trajectory(task, tmp_path):
    recipes = [
        RECIPE,
        PGD,
        *(
            dataclasses.replace(RECIPE, **change)
            for change in (
                {"epochs": 4},
                {"learning_rate": 0.01},
                {"momentum": 0.9},
                {"weight_decay": 1e-4},
                {"batch_size": 16},
                {"augmentation": "crop"},
                {"ema": 0.9},
                {"gsam_rho": 0.1},
                {"gsam_rho": 0.1, "gsam_alpha": 0.3},
                {"gsam_rho": 0.1, "gsam_adaptive": True},
            )
        ),
        *(
            dataclasses.replace(PGD, **change)
            for change in (
                {"flavour": "fast"},
                {"flavour": "trades"},
                {"flavour": "mart"},
                {"norm": "L2"},
                {"eps": 0.2},
                {"attack_steps": 3},
                {"attack_step_size": 0.01},
            )
        ),
        dataclasses.replace(PGD, flavour="trades", beta=1.0),
    ]
    keys = [ExpertStore(task, recipe).key for recipe in recipes]
    tasks = [
        digits_task(tmp_path, seed=1),
        digits_task(tmp_path, width=4),
        digits_task(tmp_path, allow_flip=True),
        dataclasses.replace(task, data_sha256="1" * 64),
        dataclasses.replace(task, preprocessing=dataclasses.replace(task.preprocessing, std=(1,))),
    ]
    keys += [ExpertStore(other, RECIPE).key for other in tasks]
    assert len(set(keys)) == len(keys)


def test_the_key_leaves_out_what_shapes_nothing(task):
    same = [
        RECIPE,
        dataclasses.replace(RECIPE, eps=0.3, beta=1.0, attack_steps=1, norm="L2"),
        dataclasses.replace(PGD, eps=0.0),
        dataclasses.replace(PGD, flavour="fast", eps=0.0),
        dataclasses.replace(RECIPE, gsam_alpha=0.3, gsam_adaptive=True),
        dataclasses.replace(PGD, eps=0.0, gsam_alpha=0.3),
    ]
    assert len({ExpertStore(task, recipe).key for recipe in same}) == 1
    fast = dataclasses.replace(PGD, flavour="fast")
    steps = dataclasses.replace(fast, attack_steps=7, attack_step_size=0.3, beta=1.0)
    assert ExpertStore(task, steps).key == ExpertStore(task, fast).key
    beta = dataclasses.replace(PGD, beta=1.0)
    assert ExpertStore(task, beta).key == ExpertStore(task, PGD).key


def test_methods_share_the_experts_of_a_recipe(task):
    other = dataclasses.replace(task, seeds=Seeds(task.seeds.base, task.seeds.track, "another"))
    assert ExpertStore(other, RECIPE).key == ExpertStore(task, RECIPE).key


def damage(path, how):
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(b"\xff" * len(content))
    elif how == "longer":
        path.write_bytes(content + b"\0" * 100)
    else:
        tensors, metadata = read_safetensors(path)
        snapshots = tensors["snapshots"].clone()
        changed = {
            "an epoch less": snapshots[:-1],
            "another network": snapshots[:, :-1],
            "one vector": snapshots.flatten(),
            "halves": snapshots.half(),
            "NaN": snapshots.fill_(float("nan")) if how == "NaN" else snapshots,
        }[how]
        write_safetensors(path, {"snapshots": changed}, metadata)


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "truncated",
        "garbage",
        "longer",
        "an epoch less",
        "another network",
        "one vector",
        "halves",
        "NaN",
    ],
)
def test_a_damaged_file_is_named_and_never_read_as_whole(task, how):
    store = stored(task)
    damage(store.parts(2)[1].output, how)
    with pytest.raises(UsageError, match=r"expert-1\.safetensors") as caught:
        store.load(2)
    assert "\n" not in str(caught.value)


def test_a_foreign_file_is_no_expert(task):
    store = stored(task, count=1)
    write_safetensors(store.parts(1)[0].output, {"snapshots": torch.zeros(2, 2)}, {})
    with pytest.raises(UsageError, match="is not a stored expert; delete it"):
        store.load(1)


def test_a_missing_expert_is_named(task):
    store = stored(task, count=1)
    with pytest.raises(UsageError, match=r"no file .*expert-1\.safetensors"):
        store.load(2)


def test_a_full_disk_leaves_nothing_half_written(task, monkeypatch):
    store = ExpertStore(task, RECIPE)
    (part,) = store.parts(1)
    opened = os.fdopen

    class Full:
        """A file on a disk with room for the header alone."""

        def __init__(self, file):
            self.file = file
            self.room = 1000

        def write(self, data):
            self.room -= len(data)
            if self.room < 0:
                self.file.write(bytes(data)[:100])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", lambda *args, **kwargs: Full(opened(*args, **kwargs)))
        with pytest.raises(RunFailedError, match="No space left on device"):
            store.train(part, RecordingReporter())
    assert list(store.folder.iterdir()) == []
    with pytest.raises(UsageError, match="no file"):
        store.load(1)
    store.train(part, RecordingReporter())
    assert len(store.load(1)) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"flavour": "strong"}, "flavour"),
        ({"ema": 1.0}, "ema"),
        ({"ema": -0.1}, "ema"),
        ({"eps": -0.1}, "eps"),
    ],
)
def test_recipes_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **bad)
