"""Tables and code of a Markdown page, as the tests check and run them."""

import re


def block(page: str, language: str, name: str) -> str:
    """The block of code whose first line is the comment `name`."""
    blocks = re.findall(
        rf"^```{language}\n(?:#|//) {name}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 1, f"{len(blocks)} {language} blocks are called {name}"
    return str(blocks[0])


def table(page: str, *columns: str) -> list[list[str]]:
    """The cells of the one table with these first columns."""
    head = "".join(rf"\| {re.escape(column)} " for column in columns)
    tables = re.findall(rf"^{head}\|[^\n]*\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", page, re.MULTILINE)
    assert len(tables) == 1, f"{len(tables)} tables begin with {columns}"
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in tables[0].splitlines()
    ]
