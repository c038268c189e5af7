"""A method may put its networks behind a preprocessing of its own, and students follow the set."""

import pytest
from tasks import RecordingReporter
from torch import nn

from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.preprocessing import ZCA, Preprocessing
from robustdd_bench.records.plan import make_plan
from robustdd_bench.runs.context import RunContext

SMALL = {
    "experts": 1,
    "start_epochs": 1,
    "match_epochs": 1,
    "student_steps": 2,
    "iterations": 2,
    "preprocessing": "zca",
}


@pytest.fixture
def context(tmp_path):
    registry = collect(get_plugin_manager())
    plan = make_plan(
        registry,
        method="mtt",
        track="digits-ipc1",
        assignments=[
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}"
            for key, value in SMALL.items()
        ],
        device="cpu",
    )
    return RunContext(plan, registry, tmp_path / "runs", tmp_path)


def test_the_harness_lets_a_method_whiten_where_the_track_does_nothing(context):
    task = context.task
    for part in context.distiller.parts(task):
        context.distiller.make_part(part, task, RecordingReporter())
    made = context.distiller.distill(task, RecordingReporter())
    made.check((1, 8, 8), 10, 1)
    assert made.preprocessing == Preprocessing("zca")
    assert isinstance(task.network(0)[0], nn.Identity)
    assert isinstance(context.student_network(made, 0)[0], ZCA)


def test_whitening_is_fitted_once(context):
    whitened = context.task.behind(Preprocessing("zca"))
    again = context.task.behind(Preprocessing("zca"))
    assert whitened.network(0)[0] is again.network(1)[0]
    assert context.task.behind(context.task.preprocessing) is context.task
