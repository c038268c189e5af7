"""`robustdd cite`: what methods and attacks say of their papers, and what is done with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_runs import registry

from robustdd_bench.citations import OWN, Citation, parse_bibtex, unique
from robustdd_bench.cli.main import main
from robustdd_bench.errors import PluginError
from robustdd_bench.plugins import Entry

ROOT = Path(__file__).resolve().parent.parent
UNCITED = {"random", "full", "given", "noise"}
"""What nobody has written a paper about."""


def shipped(kind: str) -> list[Entry]:
    found = registry()
    ours = {n for n, p in found.plugins.items() if p.distribution == "robustdd-bench"}
    return [e for e in found.entries[kind].values() if e.plugin in ours]


ENTRIES = [*shipped("distillers"), *shipped("attacks")]


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_each_shipped_method_and_attack_names_its_paper(entry) -> None:
    text = entry.load().CITATION
    if entry.name in UNCITED:
        assert text == ""
        return
    (citation,) = parse_bibtex(text)
    year = int(citation.fields["year"])
    assert 1980 <= year <= 2026
    assert str(year) in citation.key
    assert citation.fields.keys() & {"booktitle", "journal", "eprint"}
    assert all(family for family, _ in citation.authors())
    eprint = citation.fields.get("eprint")
    if eprint is not None:
        assert re.fullmatch(r"[0-9]{4}\.[0-9]{4,5}", eprint)
        # A paper is on arXiv in its year or the two before it, if it is not older than both.
        assert 0 <= year - (2000 + int(eprint[:2])) <= 2


def test_keys_are_told_apart() -> None:
    texts = {entry.load().CITATION for entry in ENTRIES} - {""}
    keys = [parse_bibtex(text)[0].key for text in texts]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["lai2025mat", "cazenavette2022mtt"])
def test_the_citation_file_says_the_same(name) -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = next(
        c for e in ENTRIES if e.load().CITATION for c in parse_bibtex(e.load().CITATION)
        if c.key == name
    )  # fmt: skip
    assert citation.fields["title"] in text
    assert f"arxiv.org/abs/{citation.fields['eprint']}" in text
    for family, _ in citation.authors():
        assert f"family-names: {family}" in text
    (own,) = parse_bibtex(OWN)
    assert own.fields["title"] in text
    assert f"version: {own.fields['version']}" in text


def test_what_is_printed_is_read_back(capsys) -> None:
    assert main(["cite", "mat", "pgd", "apgd-ce", "apgd-t"]) == 0
    found = parse_bibtex(capsys.readouterr().out)
    keys = ["lai2025mat", "madry2018pgd", "croce2020autoattack"]
    assert [citation.key for citation in found] == keys
    assert found[0].authors()[0] == ("Lai", "Wei")


def test_without_a_name_it_is_the_benchmark(capsys) -> None:
    assert main(["cite"]) == 0
    assert parse_bibtex(capsys.readouterr().out) == parse_bibtex(OWN)


def test_a_line_each_or_csl(capsys) -> None:
    assert main(["cite", "dsa", "k-means", "--format", "text"]) == 0
    assert capsys.readouterr().out == (
        "Bo Zhao, Hakan Bilen. Dataset Condensation with Differentiable Siamese Augmentation. "
        "International Conference on Machine Learning, arXiv 2102.08259, 2021.\n"
        "Stuart P. Lloyd. Least Squares Quantization in PCM. "
        "IEEE Transactions on Information Theory, 1982.\n"
    )
    assert main(["cite", "ddn", "--format", "json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["author"][0] == {"family": "Rony", "given": "Jérôme"}
    assert item["issued"] == {"date-parts": [[2019]]}
    assert item["URL"] == "https://arxiv.org/abs/1811.09600"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["mtx"], "unknown method or attack 'mtx'; did you mean 'mtt'?"),
        (["random"], "'random' names no paper; ask whom the package robustdd-bench is from"),
        (["mat", "--format", "bib"], "unknown format 'bib'"),
    ],
)
def test_what_cannot_be_cited_is_one_line(arguments, line, capsys) -> None:
    assert main(["cite", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1


def test_a_plugin_with_a_broken_citation_is_named(monkeypatch) -> None:
    from robustdd_bench.cli.cite import citations_of

    entry = next(e for e in ENTRIES if e.name == "dm")
    monkeypatch.setattr(entry.load(), "CITATION", "@misc{dm, title = {x}")
    with pytest.raises(PluginError, match="plugin 'dm': the citation of 'dm' is not BibTeX"):
        citations_of(entry, "robustdd-bench")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("misc{x}", "an entry begins with"),
        ("@misc{x, title = {a", "a brace is not closed"),
        ('@misc{x, title = "a"}', "not of the form name"),
        ("@misc{x, title = {a}, author = {b}}", "year is missing"),
        ("@misc{x, title = {a}, author = {b}, year = {soon}}", "a year of four digits"),
        ("@misc{x, title = {a}, author = {b}, year = {2020}} more", "an entry begins with"),
    ],
)
def test_what_is_not_bibtex_is_refused(text, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_bibtex(text)


def test_values_keep_inner_braces_and_lose_line_breaks() -> None:
    (found,) = parse_bibtex(
        "@misc{a1,\n title = {An {L2}\n   thing}, author = {{A Group} and B, C},year={2020},}"
    )
    assert found.fields["title"] == "An {L2} thing"
    assert found.authors() == [("A Group", ""), ("B", "C")]
    assert parse_bibtex(found.bibtex()) == (found,)
    assert unique([found, found]) == [found]
    assert isinstance(found, Citation)
