"""Who a published run is from: `submission.json` beside its record; every field is optional.

A statement of people, not of the run: it is in no hash, ranks nothing and may be mended later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from robustdd_bench.models import StrictModel, read_bounded, validated

SUBMISSION_NAME = "submission.json"
MAX_BYTES = 16 * 2**10
# No control characters, no quotes or brackets of HTML: nothing but an address.
LINK_PATTERN = r"^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[!#$%&()*+,./0-9:;=?@A-Z_a-z~\[\]-]*)?$"
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


def read_submission(folder: Path) -> Submission | None:
    """The submission of a published run; None if it says nothing.

    Raises:
        UsageError: there is one that is not valid.
    """
    path = folder / SUBMISSION_NAME
    if not path.exists():
        return None
    content = read_bounded(path, "a valid submission", MAX_BYTES)
    return validated(Submission, content, path, "a valid submission")
