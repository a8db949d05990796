"""The migration guide's tables and code."""

from tests.contract.page_parts import block, table
from tests.service_process import REPO

MIGRATION_PAGE = REPO / "services/websocket_service/MIGRATION.md"


def migration_page() -> str:
    return MIGRATION_PAGE.read_text(encoding="utf-8")


def code(language: str, name: str) -> str:
    """The block whose first line is the comment `name`."""
    return block(migration_page(), language, name)


def rows(*columns: str) -> list[list[str]]:
    """The cells of the one table with these first columns."""
    return table(migration_page(), *columns)
