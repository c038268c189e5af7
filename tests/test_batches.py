import torch

from robustdd_bench.toolkit.batches import ClassSampler

INDICES = [torch.tensor([4, 7]), torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 8])]


def draw(classes, count, seed=0):
    return ClassSampler(INDICES).draw(classes, count, torch.Generator().manual_seed(seed))


def test_each_class_gives_as_many_images_as_asked_for_without_repetition():
    index, sizes = draw([0, 1, 2], 2)
    assert sizes == [2, 2, 2]
    for part, members in zip(index.split(2), INDICES, strict=True):
        assert len(set(part.tolist())) == 2
        assert set(part.tolist()) <= set(members.tolist())


def test_a_small_class_gives_all_it_has():
    index, sizes = draw([2, 0, 1], 3)
    assert sizes == [3, 2, 3]
    assert sorted(index[3:5].tolist()) == [4, 7]


def test_every_image_is_drawn_equally_often():
    source, sampler = torch.Generator().manual_seed(1), ClassSampler(INDICES)
    drawn = torch.cat([sampler.draw([1], 2, source)[0] for _ in range(1000)])
    counts = torch.bincount(drawn, minlength=4)
    assert counts.min() > 430
    assert counts.max() < 570


def test_the_generator_decides():
    assert torch.equal(draw([0, 1, 2], 2, seed=3)[0], draw([0, 1, 2], 2, seed=3)[0])
    assert not torch.equal(draw([0, 1, 2], 2, seed=3)[0], draw([0, 1, 2], 2, seed=4)[0])
