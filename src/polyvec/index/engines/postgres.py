"""PostgreSQL with pgvector: postgresql://user@host/database#table

N texts, Q queries, K found, E numbers a vector.

An index is a table: id, text, words (a tsvector of the text), a column for each form of vectors
(vector, sparsevec, an array of vectors) and one for each field of the metadata, which has
PostgreSQL's own type and index, so that the planner knows how many rows a filter lets through.
The description is the table's comment. Every write is one transaction.

Words are English stems, ranked by the sum, over the query's words, of PostgreSQL's ts_rank times
BM25's factor of rarity: not BM25, but near it. A password comes from PGPASSWORD or ~/.pgpass.
Options of the URL are libpq's (sslmode, host for a socket's folder) and `vectors=half`, which
stores two bytes a number when the table is created.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

from polyvec.errors import IndexStoreError, InputError, MissingExtraError
from polyvec.index.engines.checks import check_query, check_rows, form_of, typed
from polyvec.index.engines.interface import Candidate, Description, Engine, Form, Rows
from polyvec.index.engines.places import (
    OPEN_S,
    WRITE_S,
    Place,
    check_storable,
    one_line,
    retried,
    storable,
)
from polyvec.index.filters import Filter
from polyvec.interfaces import Vectors

try:
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import errors as pg
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict
except ImportError:
    raise MissingExtraError("psycopg", "postgres", "an index in PostgreSQL") from None
from polyvec.index.engines import postgres_rows as convert

T = TypeVar("T")
OPERATORS = {"cosine": "<=>", "dot": "<#>", "euclidean": "<->", "manhattan": "<+>"}
CLASSES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2", "manhattan": "l1"}
WIDEST = {"vector": 2000, "halfvec": 4000}  # that an HNSW index of pgvector takes
ANN_ROWS = 10_000  # from here on `optimize` builds an HNSW index; below, all rows are compared
EF_SEARCH = 200  # candidates of an HNSW search; measured in docs/search.md
MOST_EF = 1000  # that pgvector takes
WORDS_READ = 200_000  # characters of a text whose words are found: a tsvector holds 1 MiB
BATCH = 1024
# The words of the query are quoted, since some hold | and &. ts_rank alone does not know how rare
# a word is, and ts_rank_cd is worse: on SciFact nDCG@10 of 0.37, where this has what BM25 has.
RANKED = """
    WITH asked AS MATERIALIZED (
        SELECT ('''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''')::tsquery
            AS term
        FROM unnest(to_tsvector('english', left(%s, {most})))
    ), counted AS MATERIALIZED (
        SELECT term, (SELECT count(*) FROM {table} WHERE words @@ term)::float8 AS num FROM asked
    ), weighted AS MATERIALIZED (
        SELECT term, ln(1 + (every.total - num + 0.5) / (num + 0.5)) AS rarity
        FROM counted, (SELECT count(*) AS total FROM {table}) AS every WHERE num > 0
    ), ranked AS (
        SELECT id AS found, sum(rarity * ts_rank(words, term, 1)) AS rank
        FROM weighted JOIN {table} ON words @@ term AND {condition}
        GROUP BY id ORDER BY rank DESC, id LIMIT %s
    )
    SELECT {columns}, rank FROM ranked JOIN {table} ON id = found ORDER BY rank DESC, id
"""
MARK = "polyvec "  # at the start of the table's comment
PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg.SerializationFailure,
    pg.DeadlockDetected,
)


class PostgresEngine(Engine):
    """Rows in a table. The cosine of a vector of zeros is undefined: `near` does not find it."""

    name = "postgres"
    forms: ClassVar[frozenset[Form]] = frozenset({"dense", "sparse", "multi"})  # type: ignore[misc]
    has_words = True

    def __init__(self, where: str) -> None:
        self.place = Place.read(
            where, "PGPASSWORD", example="postgresql://user@host/database#table"
        )
        self._half = self.place.choice("vectors", ("full", "half"), "full") == "half"
        options = {key: value for key, value in self.place.options.items() if key != "vectors"}
        address = urlsplit(where)._replace(fragment="", query=urlencode(options))
        try:
            self._address = conninfo_to_dict(urlunsplit(address))
        except psycopg.Error as error:
            raise InputError(f"{self.place.url}: {one_line(error)}") from None
        self._table = sql.Identifier(self.place.name)
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._made: Description | None = None
        self._indexed = False  # whether this process has looked after the HNSW index

    # ---- open and close -------------------------------------------------------------------------

    @classmethod
    def create(cls, where: str, description: Description) -> Self:
        if description.similarity not in OPERATORS:
            raise InputError(
                f"similarity {description.similarity!r}: pgvector has {', '.join(OPERATORS)}"
            )
        engine = cls(where)
        engine._run(lambda connection: engine._create(connection, description), OPEN_S)
        return engine

    @classmethod
    def open(cls, where: str) -> Self:
        engine = cls(where)
        _ = engine.description
        return engine

    @classmethod
    def exists(cls, where: str) -> bool:
        engine = cls(where)
        asked = sql.SQL("SELECT to_regclass(%s) IS NOT NULL")
        try:
            name = sql.Identifier(engine.place.name).as_string()
            return bool(
                engine._run(
                    lambda connection: connection.execute(asked, [name]).fetchone()[0], OPEN_S
                )
            )
        finally:
            engine.close()

    def _create(self, connection: Any, made: Description) -> None:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        columns = [
            'id text COLLATE "C" PRIMARY KEY',
            "text text NOT NULL",
            "words tsvector GENERATED ALWAYS AS "
            f"(to_tsvector('english', left(text, {WORDS_READ}))) STORED",
            *(f"{form} {self._type(form, made)} NOT NULL" for form in made.dimensions),
        ]
        table = sql.SQL("CREATE TABLE {} ({})")
        try:
            connection.execute(table.format(self._table, sql.SQL(", ".join(columns))))
        except pg.DuplicateTable:
            raise IndexStoreError(
                f"{self.place.url}: the table exists already; delete it, or give another name"
            ) from None
        connection.execute(sql.SQL("CREATE INDEX ON {} USING gin (words)").format(self._table))
        self._describe(connection, made)

    def _type(self, form: Form, made: Description) -> str:
        base = "halfvec" if self._half else "vector"
        width = made.dimensions[form]
        if form == "sparse":
            return f"sparsevec({width})"
        return f"{base}({width})" + ("[]" if form == "multi" else "")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @property
    def precision(self) -> float:  # type: ignore[override]
        return 1e-3 if self._half else 1e-5

    # ---- the connection -------------------------------------------------------------------------

    def _run(self, work: Callable[[Any], T], within_s: float = WRITE_S) -> T:
        """What `work` gives in one transaction, tried again if the connection breaks."""
        url = self.place.url
        try:
            with self._lock:
                return retried(lambda: self._once(work), _is_passing, within_s)
        except pg.UndefinedTable:
            raise IndexStoreError(
                f"{url}: the database has no such table; build the index with: polyvec index"
            ) from None
        except (pg.UndefinedFile, pg.FeatureNotSupported) as error:
            raise IndexStoreError(
                f"{url}: the server has no pgvector ({one_line(error)}); install the extension"
            ) from None
        except psycopg.DataError as error:
            raise InputError(f"{url}: {one_line(error)}") from None
        except psycopg.Error as error:
            reached = not isinstance(error, psycopg.OperationalError)
            what = "refused" if reached else "cannot be reached"
            raise IndexStoreError(f"{url}: {what}: {one_line(error)}") from None

    def _once(self, work: Callable[[Any], T]) -> T:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        try:
            with self._connection.transaction():
                return work(self._connection)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            # A server that shut down leaves a connection that fails for ever.
            if self._connection.closed or self._connection.broken:
                self._connection = None
            raise

    def _connect(self) -> Any:
        options: dict[str, Any] = {"connect_timeout": "5", "application_name": "polyvec"}
        options |= self._address
        # Without prepared statements: their plans do not know the values of a filter.
        connection = psycopg.connect(**options, autocommit=True, prepare_threshold=None)
        # Types have numbers of the database's own, known once the extension is there.
        found = connection.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        if found is None:
            with connection.transaction():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        elif tuple(map(int, found[0].split(".")[:2])) < (0, 8):
            raise IndexStoreError(
                f"{self.place.url}: pgvector {found[0]}, 0.8 or newer is needed; upgrade it with: "
                "ALTER EXTENSION vector UPDATE"
            )
        register_vector(connection)
        return connection

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        self._made, kinds = self._run(self._read_description, OPEN_S)
        self._half = any("halfvec" in each for each in kinds)
        return self._made

    def _read_description(self, connection: Any) -> tuple[Description, list[str]]:
        query = sql.SQL("SELECT obj_description({}::regclass, 'pg_class')")
        name = sql.Literal(self._table.as_string(connection))
        (comment,) = connection.execute(query.format(name)).fetchone()
        if not (comment or "").startswith(MARK):
            raise IndexStoreError(
                f"{self.place.url}: a table of another program; give another name"
            )
        made = Description.parse(comment.removeprefix(MARK), self.place.url)
        types = sql.SQL(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = {}::regclass AND attname IN ('dense', 'multi')"
        )
        kinds = [kind for (kind,) in connection.execute(types.format(name)).fetchall()]
        return made, kinds

    def describe(self, description: Description) -> None:
        self._run(lambda connection: self._describe(connection, description))

    def _describe(self, connection: Any, made: Description) -> None:
        for name, kind in made.fields.items():
            column = convert.column(name)
            add = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} " + convert.TYPES[kind])
            connection.execute(add.format(self._table, column))
            # A btree refuses texts of more than 2.7 kB; a hash takes all, for = only.
            how = "hash" if kind == "text" else "btree"
            index = sql.SQL(f"CREATE INDEX IF NOT EXISTS {{}} ON {{}} USING {how} ({{}})")
            named = sql.Identifier(convert.short(f"{self.place.name}_{name}_idx"))
            connection.execute(index.format(named, self._table, column))
        comment = sql.SQL("COMMENT ON TABLE {} IS {}")
        told = sql.Literal(MARK + json.dumps(made.as_dict()))
        connection.execute(comment.format(self._table, told))
        self._made = made

    # ---- write ----------------------------------------------------------------------------------

    def upsert(self, rows: Rows) -> None:
        made = self.description
        check_rows(rows, made)
        check_storable(rows, "PostgreSQL")
        convert.check_sparse(rows)
        if len(rows):
            self._run(lambda connection: self._upsert(connection, rows, made))

    def _upsert(self, connection: Any, rows: Rows, made: Description) -> None:
        columns = [sql.Identifier(name) for name in ("id", "text", *rows.vectors)]
        columns += [convert.column(name) for name in made.fields]
        statement = sql.SQL(
            "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET ({}) = ROW({})"
        ).format(
            self._table,
            sql.SQL(", ").join(columns),
            sql.SQL(", ").join(self._slots(rows, made)),
            sql.SQL(", ").join(columns),
            sql.SQL(", ").join(sql.SQL("EXCLUDED.{}").format(each) for each in columns),
        )
        metadata = typed(rows.metadata, made.fields)
        vectors = [convert.to_sql(each) for each in rows.vectors.values()]
        fields = ([row.get(name) for name in made.fields] for row in metadata)
        values = [
            [name, text, *parts, *rest]
            for name, text, rest, *parts in zip(rows.ids, rows.texts, fields, *vectors, strict=True)
        ]
        # In the order of ids, so that two writers of the same ones wait instead of deadlocking.
        values.sort(key=lambda each: each[0])
        with connection.cursor() as cursor:
            cursor.executemany(statement, values)

    def _slots(self, rows: Rows, made: Description) -> list[sql.SQL]:
        slots = [sql.SQL("%s"), sql.SQL("%s")]
        slots += [sql.SQL(f"%s::{self._type(form, made)}") for form in rows.vectors]
        return slots + [sql.SQL("%s")] * len(made.fields)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Other processes may write, too; at the end the HNSW index is built if it is time."""
        yield
        if not self._indexed:
            most = sql.SQL("SELECT EXISTS (SELECT FROM {} OFFSET {})")
            asked = most.format(self._table, sql.Literal(ANN_ROWS - 1))
            if self._fetch(asked, [])[0][0]:
                self.optimize()

    def delete(self, ids: Sequence[str]) -> int:
        statement = sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._table)
        wanted = storable(ids)
        return int(self._run(lambda connection: connection.execute(statement, [wanted]).rowcount))

    def optimize(self) -> None:
        """Build the HNSW index once there are 10,000 rows; refresh the planner's statistics."""
        made = self.description
        kind = "halfvec" if self._half else "vector"
        width = made.dimensions.get("dense", WIDEST[kind] + 1)
        if width <= WIDEST[kind] and self.count() >= ANN_ROWS:
            index = sql.SQL(
                f"CREATE INDEX IF NOT EXISTS {{}} ON {{}} USING hnsw (dense {kind}_"
                f"{CLASSES[made.similarity]}_ops) WITH (m = 16, ef_construction = 128)"
            ).format(sql.Identifier(convert.short(f"{self.place.name}_hnsw_idx")), self._table)
            self._run(lambda connection: connection.execute(index))
            self._indexed = True
        self._run(lambda connection: None)  # connects
        assert self._connection is not None
        with self._lock:  # not in a transaction, which VACUUM refuses
            self._connection.execute(sql.SQL("VACUUM ANALYZE {}").format(self._table))

    # ---- read -----------------------------------------------------------------------------------

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> Rows:
        made = self.description
        forms = tuple(made.dimensions) if vectors else ()
        statement = sql.SQL("SELECT {} FROM {} WHERE id = ANY(%s)").format(
            convert.columns(made, forms), self._table
        )
        found = self._fetch(statement, [storable(ids)])
        places = {each: at for at, each in enumerate(ids)}
        found.sort(key=lambda each: places[each[0]])
        return convert.rows_of(found, made, forms)

    def count(self, filter: Filter | None = None) -> int:
        condition, values = convert.where(filter, self.description)
        statement = sql.SQL("SELECT count(*) FROM {}{}").format(self._table, condition)
        return int(self._fetch(statement, values)[0][0])

    def near(
        self,
        queries: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Candidate]]:
        made = self.description
        check_query(queries, k, made)
        form: Form = form_of(queries)
        condition, values = convert.where(filter, made)
        select = sql.SQL("SELECT {}, {} AS distance FROM {}{} ORDER BY distance LIMIT %s")
        statement = select.format(
            convert.columns(made, ()), self._distance(form, made), self._table, condition
        )
        settings = {
            "hnsw.ef_search": min(max(EF_SEARCH, 2 * k), MOST_EF),
            "hnsw.iterative_scan": "strict_order",  # until k rows pass the filter
            "hnsw.max_scan_tuples": 200_000,
            # The planner takes the distances of wide vectors to be free, and scans for them.
            **({"enable_indexscan": "off"} if exact else {}),
        }

        def search(connection: Any) -> list[list[Any]]:
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, true)", [name, str(value)])
            with connection.cursor(binary=True) as cursor:
                return [
                    cursor.execute(statement, [query, *values, k]).fetchall()
                    for query in convert.to_sql(queries)
                ]

        return [
            [each for row in found if (each := convert.scored(row, form, made)) is not None]
            for found in self._run(search)
        ]

    def _distance(self, form: Form, made: Description) -> sql.SQL:
        operator = OPERATORS[made.similarity]
        # psycopg reads % as the start of a parameter; none of the operators has one.
        if form != "multi":
            return sql.SQL(f"{form} {operator} %s::{self._type(form, made)}")
        # MaxSim: for each vector of the query the least distance, added up.
        kind = "halfvec" if self._half else "vector"
        offset = "1 - " if made.similarity == "cosine" else "-"
        return sql.SQL(
            f"(SELECT coalesce(-sum(best), 0) FROM (SELECT max({offset}(d {operator} q)) AS best "
            f"FROM unnest(%s::{kind}[]) WITH ORDINALITY AS a(q, place) "
            "CROSS JOIN unnest(multi) AS d GROUP BY place) AS each)"
        )

    def words(
        self, queries: Sequence[str], k: int, *, filter: Filter | None = None
    ) -> list[list[Candidate]]:
        made = self.description
        condition, values = (
            (sql.SQL("true"), list[Any]()) if filter is None else convert.condition(filter)
        )
        statement = sql.SQL(RANKED).format(
            table=self._table,
            most=sql.Literal(WORDS_READ),
            condition=condition,
            columns=convert.columns(made, ()),
        )
        found = [
            self._fetch(statement, [query.replace("\0", " "), *values, k]) for query in queries
        ]
        return [
            [Candidate(row[0], row[-1], row[1], convert.fields_of(row, made)) for row in each]
            for each in found
        ]

    def scan(self, *, batch_size: int = BATCH, vectors: bool = True) -> Iterator[Rows]:
        made = self.description
        forms = tuple(made.dimensions) if vectors else ()
        statement = sql.SQL("SELECT {} FROM {} WHERE id > %s ORDER BY id LIMIT %s").format(
            convert.columns(made, forms), self._table
        )
        last = ""
        # By id, not with a cursor: what breaks in between goes on where it was.
        first = sql.SQL("SELECT {} FROM {} ORDER BY id LIMIT %s").format(
            convert.columns(made, forms), self._table
        )
        found = self._fetch(first, [batch_size])
        while found:
            yield convert.rows_of(found, made, forms)
            last = found[-1][0]
            found = self._fetch(statement, [last, batch_size])

    def _fetch(self, statement: sql.Composable, values: Sequence[Any]) -> list[Any]:
        def fetch(connection: Any) -> list[Any]:
            with connection.cursor(binary=True) as cursor:
                return list(cursor.execute(statement, values).fetchall())

        return self._run(fetch)


def _is_passing(error: Exception) -> bool:
    """Whether it may work a moment later: not with a wrong password, or without the database."""
    told = str(error).lower()
    lasting = ("authentication", "password", "does not exist", "timeout expired", "permission")
    return isinstance(error, PASSING) and not any(each in told for each in lasting)
