"""Text as LaTeX and back, and tables ready for a paper.

What is written is ASCII and needs nothing but LaTeX itself and the package booktabs. A character
that LaTeX cannot be relied on to have is shown by its number, e.g. "[U+4E2D]", so that a table
always compiles.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from robustdd_bench.text.tables import LONGEST, Column, Table, TableCell
from robustdd_bench.text.terminal import one_line

_SPECIAL = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "`": "\\textasciigrave{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "\\char34{}",
    # After a row's end these two would begin an argument of it.
    "[": "{[}",
    "*": "{*}",
}
_SIGNS = {
    "†": "$^{\\dagger}$",
    "ℓ∞": "$\\ell_\\infty$",
    "ℓ₂": "$\\ell_2$",
    "±": "$\\pm$",
    "−": "$-$",
    "×": "$\\times$",
    "·": "$\\cdot$",
    "∞": "$\\infty$",
    "≤": "$\\leq$",
    "≥": "$\\geq$",
    "≠": "$\\neq$",
    "≈": "$\\approx$",
    "→": "$\\rightarrow$",
    "°": "$^{\\circ}$",
    "µ": "$\\mu$",
    "²": "$^2$",
    "³": "$^3$",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": "\\ldots{}",
    "\u00a0": "~",
    "ß": "\\ss{}",
    "æ": "\\ae{}",
    "Æ": "\\AE{}",
    "œ": "\\oe{}",
    "Œ": "\\OE{}",
    "ø": "\\o{}",
    "Ø": "\\O{}",
    "å": "\\aa{}",
    "Å": "\\AA{}",
    "ł": "\\l{}",
    "Ł": "\\L{}",
    "ı": "\\i{}",
}
_GREEK: dict[str, str] = {
    character: f"$\\{name}$"
    for names in (
        "α alpha β beta γ gamma δ delta ε varepsilon ζ zeta η eta θ theta ι iota κ kappa λ lambda",
        "μ mu ν nu ξ xi π pi ρ rho ς varsigma σ sigma τ tau υ upsilon φ varphi χ chi ψ psi ω omega",
        "Γ Gamma Δ Delta Θ Theta Λ Lambda Ξ Xi Π Pi Σ Sigma Φ Phi Ψ Psi Ω Omega",
    )
    for character, name in re.findall(r"(\S) (\w+)", names)
}
_ACCENTS = {
    "`": "\u0300",
    "'": "\u0301",
    "^": "\u0302",
    "~": "\u0303",
    "=": "\u0304",
    "u": "\u0306",
    ".": "\u0307",
    '"': "\u0308",
    "r": "\u030a",
    "H": "\u030b",
    "v": "\u030c",
    "c": "\u0327",
    "k": "\u0328",
}
_COMMANDS = {mark: command for command, mark in _ACCENTS.items()}
_WRITTEN = _SPECIAL | _SIGNS | _GREEK
_TOKEN = re.compile(
    r" \*$|"
    + "|".join(map(re.escape, sorted(_WRITTEN, key=len, reverse=True)))
    + r"|-(?=-)|'(?=')|[^ -~]"
)


def escape(text: object) -> str:
    """Text on one line as LaTeX that shows it and does nothing else."""
    return _TOKEN.sub(lambda found: _escaped(found[0]), one_line(text, LONGEST))


def _escaped(token: str) -> str:
    if token == " *":  # the mark of a headline
        return "$^{*}$"
    if token in "-'":  # two of them would become one sign
        return f"{token}{{}}"
    if token in _WRITTEN:
        return _WRITTEN[token]
    parts = unicodedata.normalize("NFD", token)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _COMMANDS:
        letter = {"i": "\\i", "j": "\\j"}.get(parts[0], parts[0])
        return f"\\{_COMMANDS[parts[1]]}{{{letter}}}"
    return f"{{[}}U+{ord(token):04X}]"


_LETTERS = {
    text.removesuffix("{}"): sign for sign, text in _WRITTEN.items() if re.match(r"\\\w+{}$", text)
}
_READ = re.compile(
    r"\\(?P<accent>[`'^~=.\"]|[urHvck](?![A-Za-z]))\s*(?:\{\\?(?P<braced>[A-Za-z])\}"
    r"|\\?(?P<bare>[A-Za-z]))"
    r"|(?P<command>\\[A-Za-z]+)(?:\{\}|\s+|(?![A-Za-z]))"
    r"|\\(?P<sign>[&%$#_{}])"
    r"|(?P<dashes>-{2,3})|(?P<tie>~)|(?P<drop>[{}$])"
)


def unescape(latex: str) -> str:
    """The text that simple LaTeX shows, such as a title of BibTeX; braces are left out."""

    def read(found: re.Match[str]) -> str:
        if found["accent"]:
            letter = found["braced"] or found["bare"]
            return unicodedata.normalize("NFC", letter + _ACCENTS[found["accent"]])
        if found["command"]:
            return _LETTERS.get(found["command"], found["command"].removeprefix("\\"))
        if found["dashes"]:
            return "–" if len(found["dashes"]) == 2 else "—"
        return found["sign"] or ("\u00a0" if found["tie"] else "")

    return " ".join(_READ.sub(read, latex).split())


def latex_text(tables: Sequence[Table]) -> str:
    """The tables for a paper, each in a float of its own."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_float, tables))


def _float(table: Table) -> str:
    columns = [column for column in table.shown if not column.minor]
    alignment = "".join("r" if column.number else "l" for column in columns)
    label = re.sub(r"[^A-Za-z0-9:-]+", "-", table.label)
    lines = [
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape(table.caption or table.title)}}}",
        f"  \\label{{tab:{label}}}",
        "  \\smallskip",
        "  \\small",
        "  \\setlength{\\tabcolsep}{3pt}",
        f"  \\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        "    \\toprule",
        *_groups(columns),
        f"    {' & '.join(escape(column.grouped_title) for column in columns)} \\\\",
        "    \\midrule",
        *_body(table),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _groups(columns: Sequence[Column]) -> list[str]:
    """A line of headings over neighbouring columns of one group, and rules below them."""
    if not any(column.group for column in columns):
        return []
    cells, rules, start = [], [], 0
    while start < len(columns):
        group, end = columns[start].group, start + 1
        while group and end < len(columns) and columns[end].group == group:
            end += 1
        if group:
            cells.append(f"\\multicolumn{{{end - start}}}{{c}}{{{escape(group)}}}")
            rules.append(f"\\cmidrule(l){{{start + 1}-{end}}}")
        else:
            cells.append("")
        start = end
    return [f"    {' & '.join(cells)} \\\\", f"    {' '.join(rules)}"]


def _body(table: Table) -> list[str]:
    lines = []
    for number, (row, cells) in enumerate(zip(table.rows, table.seen(), strict=True)):
        if number and row.apart and not table.rows[number - 1].apart:
            lines.append("    \\midrule")
        texts = [
            _cell(cell, column)
            for cell, column in zip(cells, table.shown, strict=True)
            if not column.minor
        ]
        lines.append(f"    {' & '.join(texts)} \\\\")
    return lines


def _cell(cell: TableCell, column: Column) -> str:
    text = cell.text
    if column.number:
        text = "–" if text == "-" else text.replace("-", "−")
    found = escape(text + "†" * cell.tied)
    return f"\\textbf{{{found}}}" if cell.best else found
