"""Opening the database that the settings name, or saying why it cannot be: for the service and for commands without one."""

from __future__ import annotations

from sqlalchemy.exc import DatabaseError

from app.settings import Settings
from app.store.database import Database, MigrationError
from fitting.errors import InputError


class StartError(Exception):
    """The service cannot start; the message says why and what to do."""


def open_database(settings: Settings) -> Database:
    """The database of the settings, migrated.

    Raises:
        StartError: it cannot be opened or migrated.
    """
    try:
        database = Database(settings.store_url())
    except InputError as error:
        raise StartError(f"GROWTHLAW_DATABASE_URL: {error}") from None
    try:
        database.migrate()
    except (DatabaseError, MigrationError) as error:
        database.close()
        why = getattr(error, "orig", error)
        if settings.database_url is not None:
            mend = "see that it runs, that its user may create tables, and that no newer growthlaw wrote it"
        else:
            mend = (
                "it is damaged or was written by a newer growthlaw: put a copy back, use that growthlaw, or serve another "
                "--data-dir"
            )
        raise StartError(f"the database {database.name} cannot be used ({str(why).strip()}); {mend}") from None
    return database
