import dataclasses
import itertools

import pytest
import torch
from robustdd_coresets.plain import Full, KMeans, Random, kmeans
from robustdd_coresets.selection import Herding, KCentre, herding, k_centre
from robustdd_coresets.training import train_network
from tasks import RecordingReporter, digits_task
from torch import nn

from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager

NAMES = ["random", "full", "k-centre", "herding", "k-means"]
BALANCED = [Random, KMeans, KCentre, Herding]


def make(method, task, **config):
    if method in (KCentre, Herding):
        config = {"epochs": 2} | config
    return method(method.Config(**config)).distill(task, RecordingReporter())


def points(*rows):
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_plugin_registers_each_method(name):
    entry = collect(get_plugin_manager()).get("distillers", name)
    assert entry.plugin == "coresets"
    assert entry.load().Config() is not None


@pytest.mark.parametrize("method", BALANCED)
@pytest.mark.parametrize("uint8", [False, True])
def test_sets_have_ipc_images_of_each_class_within_the_pixel_range(method, uint8, tmp_path):
    task = digits_task(tmp_path, ipc=3, uint8=uint8)
    made = make(method, task)
    made.check((1, 8, 8), 4, 3)
    assert made.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert made.images.min() >= 0
    assert made.images.max() <= 1


@pytest.mark.parametrize("method", [Random, KCentre, Herding])
def test_chosen_images_are_different_real_images_of_their_class(method, tmp_path):
    task = digits_task(tmp_path, ipc=5)
    made = make(method, task)
    found = []
    for image, label in zip(made.images, made.labels, strict=True):
        same = (task.images == image).flatten(1).all(1) & (task.labels == label)
        assert same.any()
        found.append(int(torch.nonzero(same)[0]))
    assert len(set(found)) == 20


@pytest.mark.parametrize("method", [*BALANCED, Full])
def test_the_seed_decides_and_the_global_generator_is_left_alone(method, tmp_path):
    before = torch.random.get_rng_state()
    first, second = (make(method, digits_task(tmp_path, seed=1)) for _ in range(2))
    assert first.sha256() == second.sha256()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_sets_differ_between_seeds(tmp_path):
    made = [make(Random, digits_task(tmp_path, seed=seed)).sha256() for seed in (1, 2)]
    assert made[0] != made[1]


def test_full_is_the_whole_training_set_whatever_the_ipc(tmp_path):
    task = digits_task(tmp_path, ipc=2)
    for asked in (task, dataclasses.replace(task, ipc=None)):
        made = make(Full, asked)
        assert torch.equal(made.images, task.images)
        assert torch.equal(made.labels, task.labels)


@pytest.mark.parametrize("method", BALANCED)
def test_an_ipc_larger_than_a_class_is_refused(method, tmp_path):
    task = digits_task(tmp_path, ipc=24)  # class 0 has 23
    with pytest.raises(UsageError, match="ipc 24 is larger than class 0, which has 23"):
        make(method, task)


@pytest.mark.parametrize("method", BALANCED)
def test_a_task_without_ipc_is_refused(method, tmp_path):
    task = dataclasses.replace(digits_task(tmp_path), ipc=None)
    with pytest.raises(UsageError, match="needs a number of images per class"):
        make(method, task)


@pytest.mark.parametrize("method", BALANCED)
def test_every_image_of_a_class_can_be_asked_for(method, tmp_path):
    task = digits_task(tmp_path, ipc=4, per_class=5)
    made = make(method, task)
    made.check((1, 8, 8), 4, 4)
    for image in task.images[task.labels == 0]:
        nearest = (made.images[made.labels == 0] - image).flatten(1).abs().amax(1).min()
        assert nearest < 1e-5


def test_k_centre_starts_at_the_middle_and_goes_farthest_first():
    # mean 4.2: the nearest is 4; then 10 (6 away), then 0 (4 away), then 1 or 6 (1 and 2 away)
    assert k_centre(points([0], [1], [4], [10], [6]), 4).tolist() == [2, 3, 0, 4]


def test_k_centre_never_repeats_an_image_even_among_copies():
    assert sorted(k_centre(torch.ones(4, 3), 4).tolist()) == [0, 1, 2, 3]


def test_k_centre_covers_within_twice_the_optimal_radius():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    distance = torch.cdist(x, x)

    def radius(centres):
        return distance[:, list(centres)].amin(1).max().item()

    best = min(radius(centres) for centres in itertools.combinations(range(12), 3))
    assert radius(k_centre(x, 3).tolist()) <= 2 * best + 1e-6


def test_herding_keeps_the_running_mean_near_the_class_mean():
    # mean 3: first 2 (1 away), then (2+5)/2 = 3.5 beats (2+1)/2, then (2+5+1)/3 = 2.67
    assert herding(points([1], [2], [5], [4.0]), 1).tolist() == [1]
    assert herding(points([0], [1], [2], [5], [7]), 3).tolist() == [2, 3, 1]


def test_herding_equals_a_plain_greedy_loop():
    x = torch.randn(15, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = []
    for _ in range(8):
        rest = [i for i in range(15) if i not in chosen]
        chosen.append(min(rest, key=lambda i: (x[[*chosen, i]].mean(0) - x.mean(0)).norm()))
    assert herding(x, 8).tolist() == chosen


def test_kmeans_finds_well_separated_clusters():
    x = points([0, 0], [0, 1], [10, 0], [10, 1], [0, 20], [1, 20])
    centroids, inertia = kmeans(x, 3, torch.Generator().manual_seed(0), 50)
    assert sorted(centroids.tolist()) == [[0, 0.5], [0.5, 20], [10, 0.5]]
    assert inertia == pytest.approx(1.5)


def test_kmeans_ends_in_a_fixed_point_of_lloyds_step():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    centroids, inertia = kmeans(x, 6, torch.Generator().manual_seed(3), 500)
    distance = torch.cdist(x, centroids)
    nearest = distance.argmin(1)
    for k in range(6):
        torch.testing.assert_close(x[nearest == k].mean(0), centroids[k])
    assert inertia == pytest.approx(distance.amin(1).square().sum().item())


def test_kmeans_of_copies_gives_as_many_centroids_as_asked_for():
    centroids, inertia = kmeans(torch.ones(5, 2), 3, torch.Generator().manual_seed(0), 10)
    assert centroids.shape == (3, 2)
    assert inertia == 0


def test_the_feature_network_learns_the_training_set(tmp_path):
    task, reporter = digits_task(tmp_path), RecordingReporter()
    network = train_network(
        task,
        reporter,
        epochs=15,
        learning_rate=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=32,
    )
    losses = reporter.values["feature_loss"]
    assert len(losses) == 15 * 3
    assert sum(losses[-3:]) < 0.2 * sum(losses[:3])
    accuracy = (network(task.pixels()).argmax(1) == task.labels).float().mean()
    assert accuracy > 0.95


def test_feature_methods_work_with_another_network(tmp_path):
    def network(seed):
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 4))
        generator = torch.Generator().manual_seed(seed % 2**31)
        for parameter in body.parameters():
            nn.init.normal_(parameter, generator=generator)
        return body

    task = dataclasses.replace(digits_task(tmp_path), network=network)
    found = make(KCentre, task)
    found.check((1, 8, 8), 4, 2)
    assert torch.bincount(found.labels).tolist() == [2] * 4


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        (KCentre, {"epochs": -1}),
        (Herding, {"learning_rate": 0}),
        (Herding, {"momentum": 1.0}),
        (KMeans, {"restarts": 0}),
    ],
)
def test_values_out_of_range_are_refused(method, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        method.Config(**bad)
