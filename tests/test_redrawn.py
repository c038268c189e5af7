import dataclasses

import torch
from tasks import counting_network, digits_task

from robustdd_bench.toolkit.random_networks import RedrawnNetwork


def test_a_network_drawn_anew_is_the_network_of_that_seed_in_the_same_tensors(tmp_path):
    task = dataclasses.replace(digits_task(tmp_path), network=counting_network)
    network = RedrawnNetwork(task, 0)
    places = [tensor.data_ptr() for tensor in network.tensors()]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1, 2, 1):
        network.draw(seed)
        _, fresh = counting_network(seed)
        for name, expected in fresh.state_dict().items():
            assert torch.equal(network.body.state_dict()[name], expected)
        # Calling it changes buffers, which the next draw puts right.
        assert torch.equal(network.body(x), fresh(x))
    assert [tensor.data_ptr() for tensor in network.tensors()] == places


def test_it_is_in_train_mode_behind_the_preprocessing_layer(tmp_path):
    task = digits_task(tmp_path)
    network = RedrawnNetwork(task, 3)
    assert network.body.training
    whole = task.network(3)
    x = task.pixels(torch.arange(4))
    assert torch.equal(network.body(network.layer(x)), whole(x))
    assert all(p.requires_grad for p in network.body.parameters())
    assert not any(tensor.requires_grad for tensor in network.tensors())
