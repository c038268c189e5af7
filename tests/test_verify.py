"""`robustdd verify`: a record against an evaluation of its set, made again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from small_runs import plan_of, registry, run
from verified_runs import (
    EXAMPLES,
    edited,
    honest,
    laid,
    lowered,
    out,
    raised,
    shaken,
    track,
    track_file,
    verify,
)

from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.evaluation.witnesses import load, save
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.runs import judging, work
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.verification.reevaluate import AGREES, MORE, PROVEN, UNPROVEN


def called(*words: str) -> int:
    return main(["verify", *map(str, words), "--track", str(track()), "--data-root", str(out())])


@pytest.fixture(autouse=True, scope="module")
def made() -> None:
    """The run to verify is made before a test replaces parts of what makes it."""
    honest()


@pytest.mark.parametrize("part", [{}, {"students": 1, "examples": 150}])
def test_an_honest_record_agrees_to_the_bit(part) -> None:
    ended = honest()
    found = verify(ended.folder / "record.json", **part)
    assert found.agrees
    assert found.same_to_the_bit
    assert found.same_weights == (True,) * part.get("students", 2)
    assert found.notes == found.faults == found.reasons == ()
    assert (found.students, found.of_students) == (part.get("students", 2), 2)
    assert (found.examples, found.of_examples) == (part.get("examples", EXAMPLES), EXAMPLES)
    assert found.outcomes == found.students * found.examples * (1 + 2 * 2)
    assert [level.eps for level in found.levels] == [0.0, 0.05, 0.10]
    assert {level.word for level in found.levels} == {AGREES}
    if not part:
        assert found.levels[2].found == pytest.approx(ended.record.aggregates.headline.mean)
    assert found.levels[2].found < found.levels[0].found


def test_nothing_is_taken_from_the_folder_but_record_and_set(tmp_path, monkeypatch) -> None:
    folder = laid(honest().record, tmp_path)
    (folder / "cells").mkdir()
    for path in (honest().folder / "cells").iterdir():
        (folder / "cells" / path.name).write_bytes(b"not what a student is")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert verify(folder, students=1, examples=150).same_to_the_bit
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_method_is_not_run(tmp_path, monkeypatch) -> None:
    folder = laid(honest().record, tmp_path)

    def refuse(*args):
        raise AssertionError("the method was run")

    monkeypatch.setattr(RunContext, "method", refuse)
    monkeypatch.setattr(RunContext, "distiller", property(refuse))
    assert verify(folder, students=1, examples=150).agrees


def test_the_set_of_a_reference_row_is_made_here(tmp_path) -> None:
    few = track_file(tmp_path, ("epochs = 40", "epochs = 1\nmax_steps = 40"))
    full = run(plan_of("full", track=str(few)), tmp_path)
    folder = laid(full.record, tmp_path / "published", full.folder)
    (folder / "distilled.safetensors").write_bytes(b"not what is used")
    assert verify(folder, track=str(few), students=1, examples=150).same_to_the_bit


def test_a_method_that_calls_itself_a_reference_is_refused(tmp_path) -> None:
    record = honest().record
    told = record.method.model_copy(update={"reference": True})
    with pytest.raises(UsageError, match="it is a method like others"):
        verify(laid(edited(record, method=told), tmp_path))


@pytest.mark.parametrize("eps", [0.05, 0.10])
def test_a_claim_that_is_too_high_is_refused_at_its_eps(eps, tmp_path) -> None:
    found = verify(laid(raised(honest().record, eps, 15), tmp_path))
    words = {level.eps: level.word for level in found.levels}
    assert words[eps] == MORE
    assert words[0.0] == AGREES
    assert not found.agrees
    assert all(found.same_weights)
    assert found.other_outcomes > 0
    (reason, *_) = [text for text in found.reasons if f"{eps:.2f}" in text]
    assert reason.startswith(f"at {eps:.2f}: claims more than was found (")


def test_a_claim_about_students_that_are_not_judged_is_not_seen(tmp_path) -> None:
    folder = laid(raised(honest().record, 0.10, 15, students=(1,)), tmp_path)
    assert verify(folder, students=1).agrees


def test_a_lower_claim_without_witnesses_is_not_accepted(tmp_path) -> None:
    found = verify(laid(lowered(honest().record, 0.10, 15), tmp_path))
    assert [level.word for level in found.levels] == [AGREES, AGREES, UNPROVEN]
    assert [level.left for level in found.levels] == [None] * 3
    assert not found.agrees
    assert "claims less than was found, unproven" in found.reasons[0]


@pytest.fixture(scope="module")
def stronger(tmp_path_factory):
    """A record of the same plan whose pgd was longer, and its witnesses."""
    folder = tmp_path_factory.mktemp("stronger")
    path = track_file(folder, ("steps = 1", "steps = 40"))
    ended = execute(
        plan_of(track=str(path)), registry(), LocalExecutor(), out=folder, data_root=folder,
        reporter=NullReporter, witnesses=True,
    )  # fmt: skip
    record = edited(honest().record, students=ended.record.students)
    laid(record, folder)
    context = RunContext(plan_of(track=str(path)), registry(), folder, folder)
    images = context.evaluation.pixels()
    found, about = load(ended.folder / "witnesses.safetensors", images)
    save(folder / "witnesses.safetensors", found, images, about | {"run_id": record.run_id})
    return folder, found, images, about | {"run_id": record.run_id}


def test_a_lower_claim_is_accepted_where_its_witnesses_prove_it(stronger, tmp_path) -> None:
    folder = stronger[0]
    found = verify(folder)
    assert found.agrees
    level = found.levels[2]
    assert level.word == PROVEN
    assert level.left == pytest.approx(level.claimed)
    assert level.claimed < level.found
    alone = laid(honest().record, tmp_path)
    shutil.copyfile(folder / "record.json", alone / "record.json")
    assert verify(alone).levels[2].word == UNPROVEN
    assert verify(alone, witnesses=folder / "witnesses.safetensors").agrees
    assert verify(alone, witnesses=folder / "witnesses.safetensors", examples=150).agrees


def test_witnesses_that_do_not_hold_prove_nothing(stronger, tmp_path) -> None:
    folder, found, images, about = stronger
    found.images[:] = images[found.place]
    save(tmp_path / "w", found, images, about)
    assert verify(folder, witnesses=tmp_path / "w").levels[2].word == UNPROVEN


def test_witnesses_of_another_run_or_that_are_missing_are_refused(tmp_path, stronger) -> None:
    _, found, images, about = stronger
    save(tmp_path / "w", found, images, about | {"run_id": "0" * 12})
    with pytest.raises(UsageError, match="holds the witnesses of run 0000"):
        verify(honest().folder, witnesses=tmp_path / "w")
    with pytest.raises(UsageError, match="there are no witnesses at"):
        verify(honest().folder, witnesses=tmp_path / "nowhere")


def test_other_weights_are_held_against_intervals(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(judging, "train_student", shaken(judging.train_student, 0.01))
    found = verify(laid(honest().record, tmp_path / "honest"))
    assert found.same_weights == (False, False)
    assert 0 < found.other_outcomes < 0.1 * found.outcomes
    assert found.agrees
    assert all(level.interval.low < 0 < level.interval.high for level in found.levels)
    high = verify(laid(raised(honest().record, 0.10, 25), tmp_path / "high"))
    assert high.levels[2].word == MORE


def test_a_check_that_fails_here_and_passed_there_is_a_reason(tmp_path) -> None:
    record = honest().record
    passed = record.flags[0].name
    found = _with_failing(passed, tmp_path)
    assert [check.name for check in found.failed_checks] == [passed]
    assert found.same_to_the_bit
    assert not found.agrees
    assert found.reasons == (f"student 0 fails {passed!r}: told to",)


def _with_failing(name, folder):
    """A verification in which a check fails."""
    before = work.check_student

    def check(*args, **options):
        return [
            type(c)(c.name, False, "told to") if c.name == name else c
            for c in before(*args, **options)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "check_student", check)
        return verify(laid(honest().record, folder), students=1, examples=150)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", 7, "student 0: the record says seed 7, the track gives"),
        ("steps", 7, "student 0: the record says steps 7"),
        ("learning_rate", 0.5, "student 0: the record says learning_rate 0.5"),
    ],
)
def test_seeds_and_recipe_of_ones_choice_are_reasons(key, value, line, tmp_path) -> None:
    record = honest().record
    first = record.students[0].model_copy(update={key: value})
    told = edited(record, students=(first, *record.students[1:]))
    found = verify(laid(told, tmp_path), students=1, examples=150)
    assert not found.agrees
    assert found.reasons[0].startswith(line)


def test_what_the_record_says_of_its_set_is_held_against_the_set(tmp_path) -> None:
    record = honest().record
    told = record.distilled.model_copy(update={"labels": "soft", "pixel_max": 0.5})
    found = verify(laid(edited(record, distilled=told), tmp_path), students=1, examples=150)
    assert [text.partition(":")[0] for text in found.reasons] == [
        "distilled.labels",
        "distilled.pixel_max",
    ]


def test_another_set_is_refused(tmp_path) -> None:
    folder = laid(honest().record, tmp_path)
    distilled = DistilledSet.load(folder / "distilled.safetensors")
    distilled.images[0] += 0.25
    distilled.save(folder / "distilled.safetensors")
    with pytest.raises(UsageError, match="is not that of the record"):
        verify(folder)
    (folder / "distilled.safetensors").write_bytes(b"no set")
    with pytest.raises(UsageError, match=rf"^{folder}/distilled\.safetensors is not a readable"):
        verify(folder)
    (folder / "distilled.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no file .*distilled\.safetensors"):
        verify(folder)


def test_a_set_larger_than_the_track_allows_is_refused_before_it_is_used(tmp_path) -> None:
    record, folder = honest().record, laid(honest().record, tmp_path)
    distilled = DistilledSet.load(folder / "distilled.safetensors")
    twice = DistilledSet(
        images=distilled.images.repeat(2, 1, 1, 1), labels=distilled.labels.repeat(2)
    )
    twice.save(folder / "distilled.safetensors")
    told = record.distilled.model_copy(update={"sha256": twice.sha256()})
    shutil.copyfile(folder / "distilled.safetensors", tmp_path / "twice")
    laid(edited(record, distilled=told), folder)
    shutil.copyfile(tmp_path / "twice", folder / "distilled.safetensors")
    with pytest.raises(RunFailedError, match=r"not one that the track allows: .* 2 images of each"):
        verify(folder)


def test_other_data_are_refused(tmp_path) -> None:
    record = honest().record
    told = record.data.model_copy(update={"evaluation_sha256": "0" * 64})
    with pytest.raises(UsageError, match="are not those of the record"):
        verify(laid(edited(record, data=told), tmp_path))


def test_an_easier_protocol_under_the_same_name_is_refused(tmp_path) -> None:
    record = honest().record
    threat = record.track.threat.model_copy(update={"batch_size": 100})
    easier = record.track.model_copy(update={"threat": threat})
    folder = laid(edited(record, track=easier), tmp_path)
    with pytest.raises(UsageError, match="is not that of track verified@1: threat differ"):
        verify(folder)
    newer = track_file(tmp_path, ("version = 1", "version = 2"))
    with pytest.raises(UsageError, match="the record is of track verified@1; here is verified@2"):
        verify(honest().folder, track=str(newer))
    with pytest.raises(UsageError, match=r"track verified@1, is not at hand .* --track"):
        verify(honest().folder, track=None)


def test_attacks_of_another_version_or_setting_are_said(tmp_path) -> None:
    record = honest().record
    noise, pgd = record.attacks
    told = pgd.model_copy(update={"version": "0.0.1", "config": pgd.config | {"steps": 9}})
    other = edited(record, attacks=(noise, told), torch="1.0")
    found = verify(laid(other, tmp_path), students=1, examples=150)
    assert found.agrees
    assert [note.partition(" here, ")[2] for note in found.notes] == [
        "1.0 in the record",
        "9 in the record",
        "'0.0.1' in the record",
    ]
    assert "attack pgd: steps 1 here" in found.notes[1]


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("students", 0, r"--students must lie in 1\.\.2, not 0"),
        ("students", 3, r"--students must lie in 1\.\.2, not 3"),
        ("examples", 127, r"--examples must lie in 128\.\.179, not 127"),
        ("examples", 180, r"--examples must lie in 128\.\.179, not 180"),
        ("threads", -1, "--threads must lie in"),
        ("device", "tpu", "unknown device 'tpu'"),
    ],
)
def test_options_out_of_range_are_refused(option, value, line) -> None:
    with pytest.raises(UsageError, match=line):
        verify(honest().folder, **{option: value})


def test_a_record_with_more_threads_than_this_machine_names_the_way_out(tmp_path) -> None:
    told = edited(honest().record, threads=10**6)
    with pytest.raises(UsageError, match=r"--threads must lie in .* too many for this machine"):
        verify(laid(told, tmp_path))
    found = verify(tmp_path, threads=1, students=1, examples=150)
    assert found.notes == ("threads 1 here, 1000000 in the record",)
    assert found.agrees


def test_a_record_with_any_number_of_settings_is_told_in_a_few_lines(tmp_path) -> None:
    noise, pgd = honest().record.attacks
    many = {f"key{i}\x1b\n": i for i in range(1000)}
    told = edited(honest().record, attacks=(noise.model_copy(update={"config": many}), pgd))
    found = verify(laid(told, tmp_path), students=1, examples=150)
    assert len(found.notes) == 9
    assert found.notes[-1].startswith("attack noise: 99")
    assert all(note.isprintable() for note in found.notes)


def test_a_run_that_failed_and_what_is_no_record_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="no file"):
        verify(tmp_path)
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a record"):
        verify(tmp_path / "record.json")
    with pytest.raises(UsageError, match="no file"):
        verify(tmp_path / "nowhere")


def test_the_command_prints_a_table_and_says_that_it_agrees(capsys) -> None:
    assert called(honest().folder, "--students", "1", "--examples", "150") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].endswith(
        "accuracy in %, 1 of 2 students, 150 of 179 examples"
    )
    assert printed.out.count("agrees") == 3
    assert "claimed - found" in printed.out
    assert printed.err.splitlines()[-2:] == [
        "same to the bit: students' weights and every outcome",
        "the record agrees",
    ]


def test_a_forged_record_ends_in_exit_code_1_and_one_line(tmp_path, capsys) -> None:
    folder = laid(raised(honest().record, 0.10, 15), tmp_path)
    assert called(folder, "--json") == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["agrees"] is False
    assert told["same_weights"] == [True, True]
    assert told["levels"][0]["word"] == AGREES
    assert told["levels"][2]["word"] == MORE
    assert told["levels"][2]["interval"]["low"] > 0
    assert told["reasons"]
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert "the record disagrees: at 0." in line


def test_a_wrong_call_ends_in_exit_code_2_and_one_line(tmp_path, capsys) -> None:
    assert called(honest().folder, "--students", "9") == 2
    assert called(tmp_path) == 2
    assert called(honest().folder, "--witnesses-only", "--students", "1") == 2
    assert called(honest().folder, "--witnesses", tmp_path / "nowhere") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["error"] * 4


def test_an_interrupt_ends_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys) -> None:
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "attack_students", interrupt)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert called(honest().folder, "--students", "1") == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "interrupted in attacks/0/noise; a verification keeps nothing"
    )
    assert list(tmp_path.iterdir()) == []


def test_students_that_diverge_here_end_in_exit_code_1(monkeypatch, capsys) -> None:
    def diverge(*args, **options):
        raise RunFailedError("student 0 diverged")

    monkeypatch.setattr(judging, "train_student", diverge)
    assert called(honest().folder) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: student 0 diverged"


def test_an_attack_that_transfers_has_all_students_as_sources(tmp_path) -> None:
    path = track_file(tmp_path, ('[[attacks]]\nname = "noise"', '[[attacks]]\nname = "transfer"'))
    plan = plan_of(track=str(path))
    few = RunContext(plan, registry(), tmp_path, tmp_path, students=1, examples=150)
    assert [cell.name for cell in cells_of(few, "students")] == ["students/0", "students/1"]
    assert {cell.students for cell in cells_of(few, "attacks")} == {(0,)}
    assert len(few.evaluation) == 150
    assert len(few.whole_evaluation) == EXAMPLES
    whole = RunContext(plan, registry(), tmp_path, tmp_path)
    assert few.data_hashes == whole.data_hashes
    assert cells_of(few, "sanity")[0].inputs_sha256 is not None
    assert cells_of(few, "sanity")[0].data != cells_of(whole, "sanity")[0].data
    assert torch.equal(few.evaluation.labels, whole.evaluation.labels[:150])
