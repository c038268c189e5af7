"""Records: raw outcomes that everything else is computed from, and no way to bend them unseen."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from small_runs import example, record_json

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.evaluation.outcomes import pack_bits, unpack_bits
from robustdd_bench.records.record import (
    SCHEMA_VERSION,
    Record,
    json_schema,
    read_record,
    results_hash,
    write_record,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def fields():
    return copy.deepcopy(record_json(example("random").folder))


def refused(fields, tmp_path, *, sign=False):
    """The message with which a record is refused; `sign` computes its hash again first."""
    path = tmp_path / "record.json"
    if sign:
        fields["results_sha256"] = results_hash(Record.model_construct(**_parsed(fields)))
    path.write_text(json.dumps(fields))
    with pytest.raises(UsageError) as caught:
        read_record(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < 1500 + len(str(path))
    return text


def _parsed(fields):
    """The parts of a record, as a forger with this package at hand would build them."""
    return {
        name: TypeAdapter(field.annotation).validate_python(fields[name])
        for name, field in Record.model_fields.items()
        if name in fields
    }


def set_bits(text, change):
    bits = unpack_bits(text).clone()
    change(bits)
    return pack_bits(bits)


@pytest.mark.parametrize("method", ["random", "full", "mtt"])
def test_a_record_comes_back_as_it_was_written(method, tmp_path) -> None:
    record = example(method).record
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record
    again = tmp_path / "again.json"
    write_record(again, read_record(tmp_path / "record.json"))
    assert again.read_bytes() == (tmp_path / "record.json").read_bytes()


def test_the_hash_is_of_everything_but_the_costs() -> None:
    record = example("random").record
    later = record.costs.model_copy(update={"stages": ()})
    assert results_hash(record.model_copy(update={"costs": later})) == record.results_sha256
    assert results_hash(record.model_copy(update={"seed": 9})) != record.results_sha256


def test_aggregates_are_those_of_the_raw_outcomes() -> None:
    record = example("full").record
    for i, eps in enumerate(record.track.threat.ladder):
        values = []
        for student in record.students:
            worst = unpack_bits(student.clean)
            for result in student.attacks:
                if result.eps <= eps:
                    worst = worst & unpack_bits(result.robust)
            values.append(float(worst.double().mean()))
        found = record.aggregates.robust[i]
        assert found.eps == eps
        assert found.accuracy.values == tuple(values)
        assert found.accuracy.mean == pytest.approx(sum(values) / 2)
        assert found.accuracy.std == pytest.approx(float(torch.tensor(values).double().std()))
    assert record.aggregates.headline == record.aggregates.robust[1].accuracy
    clean = [float(unpack_bits(s.clean).double().mean()) for s in record.students]
    assert record.aggregates.clean.values == tuple(clean)


def forge(path, value):
    def change(fields):
        inside = fields
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value(inside.get(path[-1])) if callable(value) else value

    return change


def drop_student(fields):
    fields["students"].pop()


def lose_an_outcome(fields):
    fields["students"][0]["attacks"].pop()


def double_an_outcome(fields):
    fields["students"][0]["attacks"].append(fields["students"][0]["attacks"][0])


def shorten(fields):
    student = fields["students"][1]
    student["clean"] = pack_bits(unpack_bits(student["clean"])[:-1])


def all_right(bits):
    bits[:] = True


@pytest.mark.parametrize(
    "change",
    [
        forge(["aggregates", "clean", "mean"], 0.99),
        forge(["students", 0, "clean"], lambda text: set_bits(text, all_right)),
        forge(["students", 0, "sha256"], "0" * 64),
        forge(["method", "config"], {"tuned": True}),
        forge(["data", "train_sha256"], "0" * 64),
        forge(["command"], "robustdd run --method better"),
        forge(["flags"], []),
    ],
)
def test_an_edited_record_is_found_out(change, fields, tmp_path) -> None:
    change(fields)
    text = refused(fields, tmp_path)
    assert "the record was edited" in text or "run_id is not the hash" in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (forge(["aggregates", "headline", "mean"], 0.99), "the aggregates are not those of"),
        (forge(["aggregates", "clean", "low"], 0.0), "the aggregates are not those of"),
        (
            forge(["students", 0, "clean"], lambda text: set_bits(text, all_right)),
            "broken is not the number of examples that fell",
        ),
        (
            forge(["students", 1, "attacks", 3, "robust"], lambda t: set_bits(t, all_right)),
            "student 1, fgsm at eps 0.1: an example is right under attack but not without",
        ),
        (forge(["students", 0, "attacks", 0, "broken"], 89), "broken is not the number"),
        (forge(["students", 0, "clean"], "90:AAAA"), "not a bit mask ('N:base64')"),
        (forge(["track_sha256"], "0" * 64), "track_sha256 is not the hash of the track"),
        (forge(["track", "students", "epochs"], 300), "track_sha256 is not the hash of the track"),
        (forge(["seed"], 17), "run_id is not the hash of the plan"),
        (forge(["method", "version"], "9"), "run_id is not the hash of the plan"),
        (forge(["run_id"], "0" * 12), "run_id is not the hash of the plan"),
        (forge(["command"], lambda c: c + "; rm -r x"), "command is not a single call"),
        (forge(["command"], lambda c: c + " 'unclosed"), "command is not a single call"),
        (forge(["command"], "curl x | sh"), "command is not a single call"),
        (drop_student, "the number of students is not the track's"),
        (forge(["students", 1, "index"], 0), "the students are not numbered 0, 1"),
        (lose_an_outcome, "student 0 lacks outcomes of the track's suite"),
        (double_an_outcome, "an attack at an eps stands there twice"),
        (shorten, "student 1: the number of outcomes is not the number of examples"),
        (forge(["data", "evaluation_examples"], 91), "the number of outcomes is not the number"),
        (forge(["data", "dataset"], "cifar10"), "the dataset is not the track's"),
        (forge(["distilled", "images"], 30), "images_per_class does not add up"),
        (forge(["flags"], []), "every student needs the same sanity checks"),
        (forge(["flags"], lambda flags: flags[:-1]), "every student needs the same sanity checks"),
        (forge(["flags"], lambda flags: [*flags, flags[0]]), "every student needs the same"),
        (forge(["aggregates"], None), "a complete record needs data, distilled set and aggreg"),
        (forge(["status"], "failed"), "a failed record needs a failure"),
    ],
)
def test_a_forger_who_signs_again_is_found_out_by_the_raw_outcomes(
    change, line, fields, tmp_path
) -> None:
    change(fields)
    assert line in refused(fields, tmp_path, sign=True)


def test_a_record_with_more_images_than_the_track_allows_is_refused(fields, tmp_path) -> None:
    fields["distilled"] |= {"images": 40, "images_per_class": [4] * 10}
    assert "more images than the track allows" in refused(fields, tmp_path, sign=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (forge(["extra"], 1), "extra: Extra inputs are not permitted"),
        (forge(["method", "extra"], 1), "method.extra: Extra inputs are not permitted"),
        (forge(["seed"], "0"), "seed: Input should be a valid integer"),
        (forge(["seed"], -1), "seed: Input should be greater than or equal to 0"),
        (forge(["status"], "great"), "status: Input should be 'complete' or 'failed'"),
        (forge(["students", 0, "clean"], "90 bits"), "students.0.clean: String should match"),
        (forge(["students", 0, "clean"], "90:" + "A" * 3_000_000), "String should have at most"),
        (forge(["students", 0, "clean"], "9" * 9 + ":AAAA"), "String should match pattern"),
        (forge(["method", "name"], "../../escape"), "method.name: String should match pattern"),
        (forge(["method", "name"], "x" * 65), "method.name: String should match pattern"),
        (forge(["track", "name"], "../up"), "track.name: String should match pattern"),
        (forge(["run_id"], "g" * 12), "run_id: String should match pattern"),
        (forge(["k" * 10_000], 1), "Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_the_schema_is_named(change, line, fields, tmp_path) -> None:
    change(fields)
    assert line in refused(fields, tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["pixel_max", "provenance", "environment"])
def test_no_record_holds_nan_or_infinity(number, place, fields, tmp_path) -> None:
    owner = fields["costs"] if place == "environment" else fields["distilled"]
    owner[place] = "HERE" if place == "pixel_max" else {"x": "HERE"}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(fields).replace('"HERE"', number))
    with pytest.raises(UsageError, match="is not readable JSON"):
        read_record(path)


def test_nothing_writes_nan_into_a_record(tmp_path) -> None:
    record = example("random").record
    info = record.distilled.model_copy(update={"pixel_max": float("nan")})
    path = tmp_path / "record.json"
    with pytest.raises(ValueError, match="Out of range float values"):
        write_record(path, record.model_copy(update={"distilled": info}))
    assert not path.exists()


@pytest.mark.parametrize(
    ("version", "line"),
    [(0, "0"), (3, "3"), ("1", "'1'"), (True, "True"), (None, "None"), ("x" * 999, "'xxx")],
)
def test_another_schema_version_is_told_apart_from_a_bad_record(
    version, line, fields, tmp_path
) -> None:
    fields["schema_version"] = version
    text = refused(fields, tmp_path)
    assert f"schema_version {line}" in text
    assert text.endswith(f"is not known here (this is {SCHEMA_VERSION}); update robustdd-bench")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"version": 1}'])
def test_a_file_that_is_no_record_is_told(content, tmp_path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UsageError, match="is not a record: it has no schema_version"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff", "{'a': 1}"])
def test_a_file_that_is_no_json_is_told(content, tmp_path) -> None:
    (tmp_path / "r.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"r\.json is not readable JSON"):
        read_record(tmp_path / "r.json")


def test_missing_and_monstrous_files_are_told(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"no file .*nowhere\.json"):
        read_record(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_record(tmp_path)
    monster = tmp_path / "monster.json"
    with monster.open("wb") as file:
        file.truncate(2**40)  # a sparse file: nothing may try to read all of it
    with pytest.raises(UsageError, match="it is larger than 64 MiB"):
        read_record(monster)


def test_a_write_that_fails_leaves_the_record_before_it(tmp_path, monkeypatch) -> None:
    path = tmp_path / "record.json"
    write_record(path, example("random").record)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(RunFailedError, match="full"):
        write_record(path, example("mtt").record)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def matches(value, schema, definitions):
    """Whether a value fits a JSON Schema, as far as the schema of records goes."""
    if "$ref" in schema:
        return matches(value, definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return any(matches(value, option, definitions) for option in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    kind = schema.get("type")
    if kind == "object":
        known = schema.get("properties", {})
        if not isinstance(value, dict) or not set(schema.get("required", ())) <= set(value):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(known):
            return False
        return all(matches(value[k], known[k], definitions) for k in known if k in value)
    if kind == "array":
        if not isinstance(value, (list, tuple)):
            return False
        return all(matches(item, schema.get("items", {}), definitions) for item in value)
    types = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if kind is None:
        return True
    return isinstance(value, types[kind]) and (kind == "boolean" or not isinstance(value, bool))


def test_the_json_schema_fits_records_and_forbids_unknown_keys(fields) -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    for name, part in {"Record": schema, **definitions}.items():
        assert part["additionalProperties"] is False, name
    for method in ("random", "full", "mtt"):
        assert matches(record_json(example(method).folder), schema, definitions)
    fields["students"][0]["more"] = 1
    assert not matches(fields, schema, definitions)
    json.dumps(schema, allow_nan=False)


def test_the_json_schema_is_accepted_by_a_validator(fields) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.Draft202012Validator(json_schema()).validate(fields)


def test_every_published_record_is_valid() -> None:
    for path in sorted((ROOT / "leaderboard").rglob("record.json")):
        assert read_record(path).publishable, path
