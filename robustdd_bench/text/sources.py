"""What the source of a class says of its fields: annotations, and the texts below them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any


def source_of_fields(classes: Iterable[type[Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """Annotations and docstrings by field; what has no source is left out.

    Args:
        classes: whose fields they are; what a later one says goes before.
    """
    types: dict[str, str] = {}
    docs: dict[str, str] = {}
    for one in classes:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for i, statement in enumerate(body):
            if not (
                isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            ):
                continue
            name = statement.target.id
            types[name] = ast.unparse(statement.annotation)
            docs.pop(name, None)
            after = body[i + 1] if i + 1 < len(body) else None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = after.value.value
                if isinstance(text, str):
                    docs[name] = inspect.cleandoc(text)
    return types, docs
