"""Who a published run is from: `submission.json` beside its record; every field is optional.

A statement of people, not of the run: it is in no hash, ranks nothing and may be mended later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from robustdd_bench.board.admission.strings import read_statement, suspicious
from robustdd_bench.errors import UsageError
from robustdd_bench.files import write_json
from robustdd_bench.records.record import Record
from robustdd_bench.strict import StrictModel

SUBMISSION_NAME = "submission.json"
MAX_BYTES = 16 * 2**10
# No control characters, no quotes or brackets of HTML: nothing but an address.
LINK_PATTERN = r"^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[!#$%&()*+,./0-9:;=?@A-Z_a-z~\[\]-]*)?$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 .,:()+'_-]*$"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+$"


class Submission(StrictModel):
    """Who ran it, and what belongs to it."""

    submission_version: Literal[1] = 1
    by: str | None = Field(default=None, max_length=200, pattern=TEXT_PATTERN)
    """Who ran it: a name, a group."""
    link: str | None = Field(default=None, max_length=500, pattern=LINK_PATTERN)
    """Where code or sets are found, an https address."""
    paper: str | None = Field(default=None, max_length=500, pattern=LINK_PATTERN)
    """The paper of the method, an https address."""
    licence: str | None = Field(
        default=None, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9.+() -]*$"
    )
    """Licence of the distilled set, an SPDX expression such as "CC-BY-4.0"."""
    name: str | None = Field(default=None, max_length=60, pattern=NAME_PATTERN)
    """What a set that was made elsewhere is called on the board, e.g. "ROME, authors' set"."""

    def over(self, before: Submission | None) -> Submission:
        """This one, with what it leaves unsaid from `before`."""
        fields = {} if before is None else before.model_dump()
        return Submission.model_validate(fields | self.model_dump(exclude_none=True))


RULES = {
    "by": "up to 200 characters of one line, without tags",
    "link": "an https address of up to 500 characters, without spaces and quotes",
    "paper": "an https address of up to 500 characters, without spaces and quotes",
    "licence": 'an SPDX expression such as "CC-BY-4.0"',
    "name": "up to 60 letters, digits, spaces and . , : ( ) + ' _ -, the first a letter or digit",
}


def make_submission(**fields: str | None) -> Submission | None:
    """A submission of what is given; None if nothing is.

    Args:
        **fields: `by`, `link`, `paper`, `licence`, `name`; None: not given.

    Raises:
        UsageError: a value is not what its field holds; the message names every such field.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    made = None
    wrong = {line.partition(":")[0] for line in suspicious(given)}
    try:
        made = Submission.model_validate(given)
    except ValidationError as error:
        wrong |= {str(item["loc"][0]) for item in error.errors()}
    if wrong:
        raise UsageError("; ".join(f"--{key} takes {RULES[key]}" for key in RULES if key in wrong))
    return made if given else None


def statement_reasons(
    record: Record, said: Submission | None, *, confirms: bool = False
) -> list[str]:
    """Why what is said of a run is not enough, or too much, for a board.

    A method has its name, and whoever runs it made its set. A set that was made elsewhere has
    neither: people say what it is, where it is from and who may use it.

    Args:
        record: of the run.
        said: of it; None: nothing.
        confirms: it is a published run made again, of which all is said there.
    """
    if not record.given:
        named = said is not None and said.name is not None
        return [f"--name is for sets made elsewhere; this row is {record.method.name}"] * named
    if confirms:
        return []
    missing = ["--name"] * (said is None or said.name is None)
    missing += ["--paper or --link"] * (said is None or not (said.paper or said.link))
    missing += ["--licence"] * (said is None or said.licence is None)
    return [f"a set made elsewhere needs {', '.join(missing)}"] if missing else []


def read_submission(folder: Path) -> Submission | None:
    """The submission of a published run; None if it says nothing.

    Raises:
        UsageError: there is one that is not valid.
    """
    path = folder / SUBMISSION_NAME
    if not path.is_symlink() and not path.exists():
        return None
    return read_statement(Submission, path, "a valid submission", MAX_BYTES)


def write_submission(folder: Path, submission: Submission | None) -> None:
    """Write the submission of a published run; None: that there is none.

    Raises:
        RunFailedError: it cannot be written.
    """
    path = folder / SUBMISSION_NAME
    if submission is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, submission.model_dump(mode="json", exclude_none=True))
