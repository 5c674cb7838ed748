"""Apply the Alembic migrations. Every start of the stack does; two at once wait for one another."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from skyfleet.db.session import asyncpg_url


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for this database; no `alembic.ini` is needed."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    # ConfigParser reads % as interpolation.
    config.set_main_option("sqlalchemy.url", asyncpg_url(database_url).replace("%", "%%"))
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database up to `revision`. Safe to run from several processes at once."""
    command.upgrade(alembic_config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Take the database down to `revision` (`base`: no tables)."""
    command.downgrade(alembic_config(database_url), revision)


def newest_revision() -> str:
    """The newest migration that this code has."""
    newest = ScriptDirectory.from_config(alembic_config("postgresql://")).get_current_head()
    assert newest is not None
    return newest


def main() -> None:
    """`python -m skyfleet.db.migrate`: upgrade the configured database to the newest revision."""
    from skyfleet.settings import settings

    upgrade(settings().database_url.get_secret_value())


if __name__ == "__main__":
    main()
