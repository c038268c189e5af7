import pytest
import torch

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.toolkit.checkpoint import Checkpoint, require_finite


def test_there_is_nothing_to_load_at_first(tmp_path):
    assert Checkpoint(tmp_path / "state.safetensors", 0).load() is None


def test_state_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "state.safetensors"
    state = {"images": torch.randn(2, 3), "count": torch.tensor([4])}
    Checkpoint(path, 10, "a").save(7, state)
    step, loaded = Checkpoint(path, 10, "a").load()
    assert step == 7
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_state_of_another_configuration_is_not_resumed_from(tmp_path):
    path = tmp_path / "state.safetensors"
    Checkpoint(path, 0, "lr=1").save(7, {"x": torch.ones(1)})
    assert Checkpoint(path, 0, "lr=2").load() is None


def test_it_saves_when_the_time_has_come(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "state.safetensors", 10)
    saved = []
    for step in range(1, 25):
        now[0] += 1
        if checkpoint.maybe_save(step, {"x": torch.full((1,), float(step))}):
            saved.append(step)
    assert saved == [10, 20]
    assert checkpoint.load()[0] == 20


def test_a_diverged_state_is_refused_and_the_last_good_one_kept(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", 0)
    checkpoint.save(1, {"x": torch.zeros(1)})
    with pytest.raises(RunFailedError, match="x held NaN or infinity at iteration 2"):
        checkpoint.save(2, {"x": torch.tensor([float("nan")])})
    assert checkpoint.load()[0] == 1


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        Checkpoint(path, 0).load()


def test_finite_tensors_pass():
    require_finite(3, images=torch.zeros(2), loss=torch.tensor(1.0))
    with pytest.raises(RunFailedError, match="loss held NaN or infinity at iteration 3"):
        require_finite(3, images=torch.zeros(2), loss=torch.tensor(float("inf")))
