"""Records of earlier schema versions stay loadable, with every hash they were written with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustdd_bench.board.standings import standings
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.records.record import read_record, results_hash

HISTORIC = sorted((Path(__file__).parent / "historic_records").glob("*.json"))


@pytest.mark.parametrize("path", HISTORIC, ids=[path.stem for path in HISTORIC])
def test_a_historic_record_is_read_and_written_as_it_is(path) -> None:
    record = read_record(path)
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert f"v{record.schema_version}-" in path.name
    assert record.model_dump(mode="json") == fields
    assert results_hash(record) == fields["results_sha256"]
    assert record.plan().run_id() == fields["run_id"]


@pytest.mark.parametrize("path", HISTORIC, ids=[path.stem for path in HISTORIC])
def test_a_historic_record_means_what_it_meant(path) -> None:
    record = read_record(path)
    everything = all(spec.on == "all" and spec.at == "ladder" for spec in record.track.attacks)
    assert everything is (record.schema_version == 1)
    for student in record.students:
        clean = unpack_bits(student.clean)
        for result in student.attacks:
            assert (result.tried is None) or record.schema_version > 1
            tried = clean if result.tried is None else unpack_bits(result.tried)
            assert result.broken == int((tried & ~unpack_bits(result.robust)).sum())
    (standing,) = standings([record])
    assert standing.headline.mean == record.aggregates.headline.mean


def test_a_set_that_was_taken_over_still_names_its_run() -> None:
    record = read_record(next(path for path in HISTORIC if "transfer" in path.stem))
    assert record.costs.adopted is not None
    assert record.costs.adopted.run_id != record.run_id


def test_there_is_a_sample_of_each_version() -> None:
    from robustdd_bench.records.record import READABLE

    assert {read_record(path).schema_version for path in HISTORIC} == set(READABLE)
