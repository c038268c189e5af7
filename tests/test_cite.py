"""`robustdd cite`: what plugins say is to be cited for them, in every form."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from commands import robustdd
from hypothesis import given
from hypothesis import strategies as st
from small_runs import registry
from strangers import install, method

from robustdd_bench import __version__
from robustdd_bench.citations import KINDS, Citation, benchmark, citations, merged, parse_bibtex
from robustdd_bench.cli.main import COMMANDS, main
from robustdd_bench.cli.shared.session import Session
from robustdd_bench.conformance import check_distiller
from robustdd_bench.errors import PluginError
from robustdd_bench.plugins import Entry

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = {"random", "full", "noise", "folder", "random-robust-labels"}
"""What is ours or nobody's, and has no paper."""


def shipped() -> list[Entry]:
    ours = {n for n, p in registry().plugins.items() if p.distribution == "robustdd-bench"}
    return [
        entry
        for kind in KINDS
        for entry in registry().entries[kind].values()
        if entry.plugin in ours
    ]


@pytest.fixture
def call(capsys):
    """Stdout and stderr of `robustdd cite`, given its exit code."""

    def calling(*args: str, code: int = 0) -> tuple[str, str]:
        assert main(["cite", *args]) == code
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err
        return printed.out, printed.err

    return calling


@pytest.mark.parametrize("entry", shipped(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_everything_shipped_that_has_a_paper_names_it(entry) -> None:
    found = citations(entry)
    assert bool(found) is (entry.name not in WITHOUT)
    for citation in found:
        assert {"author", "title", "year"} <= set(citation.fields)
        assert {"booktitle", "journal", "institution", "howpublished", "eprint"} & set(
            citation.fields
        )
        eprint = citation.fields.get("eprint", "0000.00000")
        assert re.fullmatch(r"[0-9]{4}\.[0-9]{4,5}", eprint)
        assert all(value.isascii() and value == value.strip() for value in citation.fields.values())


def test_cite_comes_in_through_the_hook_robustdd_register_commands(capsys, monkeypatch) -> None:
    assert "cite" not in COMMANDS
    session = Session()
    assert session.plugin_commands.commands["cite"].name == "cite"
    assert session.infos["cite"].module == "robustdd_cite"
    assert main(["--help"]) == 0
    assert "cite          Print what to cite for methods" in capsys.readouterr().out
    monkeypatch.setenv("ROBUSTDD_DISABLED_PLUGINS", "cite")
    assert main(["cite"]) == 2
    assert "unknown command 'cite'" in capsys.readouterr().err


def test_one_key_is_one_paper_throughout() -> None:
    every = [citation for entry in shipped() for citation in citations(entry)]
    assert len(merged(every)) == len({citation.key for citation in every}) < len(every)


def test_the_benchmark_is_cited_as_in_citation_cff() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    fields = benchmark().fields
    assert f'title: "{fields["title"]}"' in text
    assert f"version: {__version__}\ndate-released: {fields['year']}-" in text
    assert f'name: "{fields["author"].strip("{}")}"' in text
    for name in ("mat", "mtt"):
        (citation,) = citations(registry().get("distillers", name))
        assert f'"{citation.shown("title")}"' in text
        assert f"https://arxiv.org/abs/{citation.fields['eprint']}" in text
        assert all(f"family-names: {family}" in text for family, _ in citation.authors())


def test_bibtex_is_printed_once_a_paper_and_reads_back(call) -> None:
    out, err = call("mat", "pgd", "apgd-ce", "autoattack", "cifar10", "cifar100")
    assert err == ""
    found = parse_bibtex(out)
    assert [citation.key for citation in found] == [
        "lai2025robust",
        "madry2018towards",
        "croce2020reliable",
        "croce2020minimally",
        "andriushchenko2020square",
        "krizhevsky2009learning",
    ]
    assert "".join(f"{citation.bibtex()}\n" for citation in found) == f"{out}\n"
    assert (found[0],) == citations(registry().get("distillers", "mat"))


def test_without_a_name_the_benchmark_is_cited(call) -> None:
    (citation,) = parse_bibtex(call()[0])
    assert citation == benchmark()
    every = parse_bibtex(call("--all")[0])
    assert every[0] == benchmark()
    assert len(every) > 20


def test_text_is_a_line_a_paper(call) -> None:
    assert call("ddn", "mat", "--format", "text")[0].splitlines() == [
        "Jérôme Rony, Luiz G. Hafemann, Luiz S. Oliveira, Ismail Ben Ayed, Robert Sabourin and "
        "Eric Granger. Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial "
        "Attacks and Defenses. Proceedings of the IEEE/CVF Conference on Computer Vision and "
        "Pattern Recognition, 4322–4330, arXiv:1811.09600, 2019.",
        "Wei Lai, Tianyu Ding, Dongdong Ren, Lei Wang, Jing Huo, Yang Gao and Wenbin Li. Robust "
        "Dataset Distillation by Matching Adversarial Trajectories. arXiv:2503.12069, 2025.",
    ]


def test_csl_is_what_reference_managers_read(call) -> None:
    mat, lloyd, cifar = json.loads(call("mat", "k-means", "cifar10", "--format", "csl")[0])
    assert (mat["type"], mat["URL"]) == ("article", "https://arxiv.org/abs/2503.12069")
    assert mat["author"][0] == {"family": "Lai", "given": "Wei"}
    assert mat["issued"] == {"date-parts": [[2025]]}
    assert lloyd == {
        "id": "lloyd1982least",
        "type": "article-journal",
        "title": "Least Squares Quantization in PCM",
        "author": [{"family": "Lloyd", "given": "Stuart P."}],
        "issued": {"date-parts": [[1982]]},
        "container-title": "IEEE Transactions on Information Theory",
        "volume": "28",
        "issue": "2",
        "page": "129–137",
        "DOI": "10.1109/TIT.1982.1056489",
    }
    assert (cifar["type"], cifar["publisher"]) == ("report", "University of Toronto")
    assert json.loads(call("--format", "csl")[0])[0]["author"] == [
        {"literal": "The robustdd-bench authors"}
    ]


def test_json_says_whose_paper_it_is(call) -> None:
    found = json.loads(call("mtt", "random", "--json")[0])
    assert found["benchmark"] == []
    mtt, random = found["entries"]
    assert (mtt["kind"], mtt["name"], mtt["plugin"]) == ("method", "mtt", "mtt")
    assert mtt["citations"][0]["fields"]["eprint"] == "2203.11932"
    assert random["citations"] == []
    assert call("mtt", "--json") == call("mtt", "--format", "json")


def test_what_has_no_paper_is_said_and_is_a_failure_only_alone(call) -> None:
    out, err = call("random", code=1)
    assert (out, err) == (
        "",
        "note: method 'random' names no paper to cite (plugin 'coresets', robustdd-bench)\n",
    )
    out, err = call("random", "mat")
    assert "lai2025robust" in out
    assert err.startswith("note: method 'random'")


def test_wrong_calls_are_refused_in_a_line(call) -> None:
    unknown = "error: unknown method, attack or dataset 'herdin'; did you mean 'herding'?\n"
    assert call("herdin", code=2) == ("", unknown)
    assert "known: " in call("nonsense-that-is-none", code=2)[1]
    assert call("mat", "--all", code=2)[1] == "error: give names or --all, not both\n"
    assert "choose one" in call("mat", "--json", "--format", "csl", code=2)[1]
    assert "did you mean 'bibtex'?" in call("--format", "bibtx", code=2)[1]


@pytest.mark.parametrize("kind", ["method", "attack"])
def test_show_tells_the_paper(kind, capsys) -> None:
    name, title = {
        "method": ("mat", "Robust Dataset Distillation by Matching"),
        "attack": ("pgd", "Towards Deep Learning Models Resistant"),
    }[kind]
    assert main(["show", kind, name]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("paper")]
    assert title in line
    assert main(["show", kind, name, "--json"]) == 0
    (paper,) = json.loads(capsys.readouterr().out)["citations"]
    assert paper["fields"]["title"].startswith(title)


GOOD = "@misc{k, author={A B and C, D}, title={T}, year=2020}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it holds no entry"),
        ("% nothing\n", "it holds no entry"),
        ("words", "no entry at 'words'"),
        ("@misc{k author={A}}", "no entry at"),
        ("@string{x = {y}}", "no entry at"),
        ("@misc{k, author={A}, title={T}}", "lacks year"),
        ("@misc{k, author={A}, title={}, year=2020}", "lacks title"),
        ("@misc{k, author={and}, title={T}, year={soon}}", "the year is 'soon'"),
        ("@misc{k, author={A}, title={T", "no value at"),
        ("@misc{k, author={A}, title={T \\{}, year=2020}", "no comma at"),
        ("@misc{k, author={A}, title=T, year=2020}", "no value at 'T"),
        ("@misc{k, author={A}, title={T}} , year=2020}", "lacks year"),
        ('@misc{k, author="A}", title={T}, year=2020}', "no value at"),
        ("@misc{k, author={A} # {B}, title={T}, year=2020}", "no comma at"),
        ("@misc{k, author={A}, author={B}, title={T}, year=2020}", "'author' stands twice"),
        ("@misc{k, author={A}, title={T}, year=2020", "no comma at ''"),
        ("@misc{k, author={A}, title={T}, year=2020, =}", "no field at"),
        (GOOD + GOOD, "the key 'k' stands twice"),
        ("@misc{k, author={ and }, title={T}, year=2020}", "no author"),
    ],
)
def test_what_is_not_plain_bibtex_is_refused_with_the_place(text, why) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_bibtex(text)


@given(st.text('@{}=,"\\ \nab1', max_size=40))
def test_any_text_is_read_or_refused(text) -> None:
    with contextlib.suppress(ValueError):  # and nothing else
        found = parse_bibtex(text)
        assert parse_bibtex("".join(citation.bibtex() for citation in found)) == found


def test_values_names_and_comments_are_read_as_bibtex_reads_them() -> None:
    text = (
        "% a comment\n@InProceedings{key:2020,\n  Author = {Tram{\\`e}r, Florian and "
        '{Barnes and Noble} and Jane van Doe},\n title = "{T}he \\"{u} \n  title",\n year=2020\n}\n'
    ).replace('"{u}', "'{u}")
    (found,) = parse_bibtex(text)
    assert (found.kind, found.key) == ("inproceedings", "key:2020")
    assert found.fields["title"] == "{T}he \\'{u} title"
    assert found.shown("title") == "The ú title"
    assert found.authors() == [("Tramèr", "Florian"), ("Barnes and Noble", ""), ("Doe", "Jane van")]
    assert found.text() == "Florian Tramèr, Barnes and Noble and Jane van Doe. The ú title. 2020."
    assert parse_bibtex(found.bibtex()) == (found,)


def test_two_papers_with_one_key_keep_both() -> None:
    one, other = (Citation("misc", "k", {"author": a, "title": "T", "year": "2020"}) for a in "AB")
    assert [c.key for c in merged([one, other, one, other])] == ["k", "k-2"]


STRANGER = """
from robustdd_bench.distillers import Distiller
from pathlib import Path


class Method(Distiller):
    CITATION = {citation}

    def distill(self, task, reporter):
        raise NotImplementedError
"""


def entry_of(folder: Path, monkeypatch, citation: str, name: str) -> Entry:
    (folder / f"{name}.py").write_text(STRANGER.format(citation=citation))
    monkeypatch.syspath_prepend(folder)
    return Entry("distillers", "theirs", f"{name}:Method", "", "stranger")


@pytest.mark.parametrize(
    ("citation", "why"),
    [
        ("7", "it is a int, neither a text nor a Path"),
        ("'@misc{'", "no entry at"),
        ("Path(__file__).with_name('none.bib')", "no file"),
        ("Path(__file__).with_name('binary.bib')", "can't decode"),
        ("Path(__file__).with_name('large.bib')", "larger than 64 KiB"),
        ("Path(__file__).parent", "cannot be read"),
    ],
)
def test_a_strangers_citation_that_is_not_to_be_read_is_the_plugins_fault(
    tmp_path, monkeypatch, citation, why
) -> None:
    (tmp_path / "binary.bib").write_bytes(b"\xff\xfe@misc")
    (tmp_path / "large.bib").write_text(GOOD + " " * 2**16)
    entry = entry_of(tmp_path, monkeypatch, citation, f"stranger_{abs(hash(citation))}")
    with pytest.raises(PluginError, match=re.escape(why)) as caught:
        citations(entry)
    assert str(caught.value).startswith("plugin 'stranger': CITATION of method 'theirs'")
    assert "\n" not in str(caught.value)
    (finding,) = [f for f in check_distiller(entry) if f.check == "class"]
    assert not finding.passed
    assert "CITATION" in finding.detail


def test_an_installed_stranger_is_cited_like_the_shipped_ones(tmp_path, monkeypatch) -> None:
    code = method("theirs", "stranger_good:Method") + STRANGER.format(
        citation=repr(GOOD.replace("{T}", "{\x1b[31mT}"))
    )
    install(tmp_path, "good", code)
    bad = method("damaged", "stranger_bad:Method") + STRANGER.format(citation="'@'")
    install(tmp_path, "bad", bad)
    monkeypatch.syspath_prepend(str(tmp_path))
    good = robustdd("cite", "theirs")
    assert good.returncode == 0, good.stderr
    assert "title  = {[31mT}" in good.stdout
    assert "\x1b" not in good.stdout
    damaged = robustdd("cite", "damaged")
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert damaged.stderr.startswith("error: plugin 'bad': CITATION of method 'damaged'")
    shown = robustdd("show", "method", "damaged")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr.startswith("warning: plugin 'bad': CITATION of method 'damaged'")
    for name in ("stranger_good", "stranger_bad"):
        del sys.modules[name]


def test_bibtex_files_are_part_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    found = [p for top in ("plugins", "baselines") for p in (ROOT / top).rglob("*.bib")]
    assert len(found) == 16
    assert all(any(path.match(pattern) for pattern in patterns) for path in found)
