"""Makes a notebook of each script of docs/examples/, beside it:

    python docs/notebooks.py

A line `# %% WORDS`, with the comments right below it, becomes a cell of text; the code after it, a
cell of code. The same script always gives the same file, without outputs.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent / "examples"


def cells(script: str) -> Iterator[tuple[str, str]]:
    """Kind (`markdown` or `code`) and text of each cell; the module's docstring is before them."""
    for cell in re.split(r"^# %% ", script, flags=re.M)[1:]:
        lines = cell.splitlines()
        end = next((n for n, line in enumerate(lines) if n and not line.startswith("#")), None)
        yield "markdown", "\n".join([lines[0], *(line[2:] for line in lines[1:end])])
        if end is not None and (code := "\n".join(lines[end:]).strip("\n")):
            yield "code", code


def notebook(path: Path) -> str:
    """The text of the notebook that a script becomes."""
    script = path.read_text("utf-8")
    title = (ast.get_docstring(ast.parse(script)) or path.stem).split("\n\n")[0]
    made = f"# {title}\n\nMade from `{path.name}` by `docs/notebooks.py`."
    found = []
    for number, (kind, text) in enumerate([("markdown", made), *cells(script)]):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        found.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": found,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes all of them."""
    for path in sorted(EXAMPLES.glob("*.py")):
        path.with_suffix(".ipynb").write_text(notebook(path), "utf-8")


if __name__ == "__main__":
    main()
