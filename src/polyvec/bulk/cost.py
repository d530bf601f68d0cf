"""What a corpus costs: hours, money, disk, memory, machines and queries a second.

Every line says whether its number was measured, extrapolated from what was measured, calculated
from other lines, or given by the user.
"""

import math
from dataclasses import dataclass

from polyvec.bulk.figures import CALCULATED, EXTRAPOLATED, GIVEN, Figure, Model, figures
from polyvec.errors import SettingsError, known

BYTES = {"float32": 4.0, "int8": 1.0, "uint8": 1.0, "binary": 1 / 8, "ubinary": 1 / 8}
SHARD_ROWS = 50_000  # of `polyvec embed -o FOLDER/`
FOLDER_ROWS = 10_000_000  # ten times the largest folder that was measured
USABLE = 0.8  # of a machine's memory: the rest is the system's and the queries'
WIDEST_PGVECTOR = 4000  # dimensions of halfvec under HNSW; 2,000 of vector
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is planned. tokens: of a document, on average. gpus: or, where 0, cores of CPUs."""

    documents: int
    tokens: float
    gpus: int = 0
    cores: int = 0
    model: str = "all-MiniLM-L6-v2"
    precision: str = "float32"
    dimension: int | None = None
    tokens_per_s: float | None = None
    price_device_hour: float | None = None
    machine_gb: float = 64.0
    machine_cores: int = 16


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the plan. key: its name in JSON, the unit at its end."""

    key: str
    name: str
    value: float | str
    shown: str
    basis: str
    source: str


@dataclass(frozen=True, slots=True)
class Held:
    """What an engine needs for all vectors. note: how it keeps them."""

    engine: str
    memory: float
    disk: float
    machines: int
    note: str


def cost(wanted: Wanted) -> list[Line]:
    """The lines of the plan, in the order of the work.

    Raises SettingsError for numbers that make no plan, an unknown model or precision, and texts
    that the model does not read whole.
    """
    model = figures().model(wanted.model)
    _check(wanted, model)
    return [*_embedding(wanted, model), *_store(wanted, wanted.dimension or model.dimension)]


def _check(wanted: Wanted, model: Model) -> None:
    for name in ("documents", "tokens", "machine_gb", "machine_cores"):
        value = getattr(wanted, name)
        if not (math.isfinite(value) and value > 0):
            option = "--" + name.replace("_", "-")
            raise SettingsError(f"{option}: {value:g} is not a positive number")
    if (wanted.gpus > 0) == (wanted.cores > 0):
        raise SettingsError("give the devices that embed: either --gpus N or --cores N")
    if wanted.precision not in BYTES:
        raise SettingsError(
            f"--precision: unknown precision {wanted.precision!r}." + known(wanted.precision, BYTES)
        )
    if wanted.tokens > model.max_tokens:
        raise SettingsError(
            f"--tokens: {wanted.tokens:g} are more than the {model.max_tokens} that {model.name} "
            "reads of a text; plan for chunks: more documents, of fewer tokens"
        )
    if wanted.dimension is not None and wanted.dimension > model.dimension:
        raise SettingsError(
            f"--truncate-dim: {wanted.dimension} are more than the {model.dimension} dimensions "
            f"of {model.name}"
        )


# ---- embedding ----------------------------------------------------------------------------------


def _embedding(wanted: Wanted, model: Model) -> list[Line]:
    device = "gpu" if wanted.gpus else "core"
    named = "GPU" if wanted.gpus else "core"
    count = wanted.gpus or wanted.cores
    rate = token_rate(model, device, wanted.tokens_per_s)
    tokens = wanted.documents * wanted.tokens
    blocks = math.ceil(wanted.documents / SHARD_ROWS)
    overhead = figures().numbers["ray_s_per_block"]
    hours = (tokens / (rate.value * count) + blocks * overhead.value) / 3600
    stored = wanted.documents * row_bytes(wanted.dimension or model.dimension, wanted.precision)
    price = wanted.price_device_hour
    money = None if price is None else price * hours * count
    return [
        Line("tokens", "tokens", tokens, f"{tokens:.3g}", CALCULATED, "documents x tokens"),
        _line("tokens_per_s", f"tokens/s of one {named}", rate, f"{rate.value:,.0f}"),
        Line(
            "embed_hours",
            f"hours of embedding on {count:,} {named}{'s' if count > 1 else ''}",
            hours,
            _hours(hours),
            EXTRAPOLATED,
            "one device's rate times their number, and what each block costs the driver",
        ),
        Line(
            "device_hours",
            f"{named} hours",
            hours * count,
            _hours(hours * count),
            CALCULATED,
            "hours x devices",
        ),
        Line(
            "price",
            "price",
            "unknown" if money is None else money,
            f"give --price-{device}-hour" if money is None else f"{money:,.2f}",
            CALCULATED,
            "device hours x your price, in its currency; without storage and transfer",
        ),
        Line(
            "blocks",
            "shards of embed",
            blocks,
            f"{blocks:,}",
            CALCULATED,
            f"{SHARD_ROWS:,} rows each",
        ),
        _line(
            "ray_overhead_hours",
            "of them for the blocks of Ray",
            Figure(blocks * overhead.value / 3600, EXTRAPOLATED, overhead.source),
            _hours(blocks * overhead.value / 3600),
        ),
        Line(
            "vectors_gb",
            f"GB of shards, {wanted.precision}",
            stored / GB,
            f"{stored / GB:,.1f}",
            EXTRAPOLATED,
            f"bytes of a vector, and {figures().numbers['bytes_per_row_beside'].value:.1f} a row "
            f"beside it: {figures().numbers['bytes_per_row_beside'].source}",
        ),
    ]


def token_rate(model: Model, device: str, given: float | None = None) -> Figure:
    """Tokens a second of one device.

    Of a model that was not timed on it: by the power of parameters between the nearest that were;
    a smaller model counts as the smallest, as the time between kernels does not shrink; a larger
    one as many times slower as it is larger.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise SettingsError(f"--tokens-per-second: {given:g} is not a positive number")
        return Figure(given, GIVEN, "--tokens-per-second")
    if device in model.tokens_per_s:
        return model.tokens_per_s[device]
    timed = sorted(
        (each.parameters, each.tokens_per_s[device])
        for each in figures().models.values()
        if device in each.tokens_per_s
    )
    below = [each for each in timed if each[0] <= model.parameters]
    above = [each for each in timed if each[0] > model.parameters]
    if not below:
        rate = above[0][1]
        return Figure(rate.value, EXTRAPOLATED, f"the smallest model that was timed: {rate.source}")
    size, rate = below[-1]
    power = -1.0
    if above:
        power = math.log(above[0][1].value / rate.value) / math.log(above[0][0] / size)
    value = rate.value * (model.parameters / size) ** power
    return Figure(value, EXTRAPOLATED, f"by parameters from: {rate.source}")


def row_bytes(dimension: int, precision: str) -> float:
    """Bytes of a row in the shards of `polyvec embed`: its numbers, and what is beside them."""
    beside = figures().numbers["bytes_per_row_beside"].value
    return math.ceil(dimension * BYTES[precision]) + beside


# ---- the store ----------------------------------------------------------------------------------


def _store(wanted: Wanted, dimension: int) -> list[Line]:
    engines = held(wanted, dimension)
    best = min(engines, key=lambda each: each.machines)  # the first of those with as few
    rows = wanted.documents / best.machines
    kind = "folder" if best.engine == "folder" else "graph"
    build, query = (figures().curves[f"{kind}_{name}"].at(rows) for name in ("build_s", "query_s"))
    width = dimension / figures().numbers["store_dimension"].value
    build_hours = build.value * width / wanted.machine_cores / 3600
    rate = wanted.machine_cores / (query.value * width)
    memory = f"{USABLE:.0%} of {wanted.machine_gb:g} GB a machine"
    lines = [
        Line(
            f"{each.engine.lower()}_machines",
            f"{each.engine}: machines; memory, disk in GB",
            each.machines,
            f"{each.machines:,}; {each.memory / GB:,.1f}, {each.disk / GB:,.1f}",
            EXTRAPOLATED,
            f"{each.note}; {memory}",
        )
        for each in engines
    ]
    return [
        *lines,
        Line(
            "engine",
            "store that holds it",
            best.engine,
            f"{best.engine}, {best.machines:,} shard{'s' if best.machines > 1 else ''}",
            CALCULATED,
            "the fewest machines; of equals the first",
        ),
        Line(
            "memory_gb",
            "GB of memory",
            best.memory / GB,
            f"{best.memory / GB:,.1f}",
            EXTRAPOLATED,
            best.note,
        ),
        Line(
            "store_gb",
            "GB on the store's disks",
            best.disk / GB,
            f"{best.disk / GB:,.1f}",
            EXTRAPOLATED,
            best.note,
        ),
        _line(
            "build_hours",
            "hours of building, a shard a machine",
            Figure(build_hours, EXTRAPOLATED, build.source),
            _hours(build_hours),
        ),
        _line(
            "queries_per_s",
            "queries/s, every shard asked",
            Figure(rate, EXTRAPOLATED, query.source),
            f"{rate:,.0f}",
        ),
    ]


def held(wanted: Wanted, dimension: int) -> list[Held]:
    """What each engine needs; without those that cannot hold such vectors.

    Memory is that of what a query walks through: HNSW's links, with m = 16 as the engines have it,
    and the vectors as the engine keeps them in memory. Whole vectors are on disk in every engine.
    """
    numbers = figures().numbers
    rows, floats = wanted.documents, 4.0 * dimension
    links = numbers["graph_bytes_per_vector"].value
    kept = {"float32": floats, "int8": dimension, "uint8": dimension}.get(
        wanted.precision, math.ceil(dimension / 8)
    )
    quantized = {"float32": "", "int8": "?quantization=int8, ", "uint8": "?quantization=int8, "}
    qdrant = quantized.get(wanted.precision, "?quantization=binary, ")
    on_disk = floats + (0 if wanted.precision == "float32" else kept) + links
    found = []
    if rows <= FOLDER_ROWS:
        width = dimension / numbers["store_dimension"].value
        disk = figures().curves["folder_bytes"].at(rows).value * width
        memory = figures().curves["folder_peak_bytes"].at(rows).value * width
        found.append(Held("folder", memory, disk, 1, "LanceDB; memory is the peak of building"))
    shapes = [("Qdrant", kept + links, on_disk, f"{qdrant}HNSW m 16 in memory")]
    shapes.append(("Milvus", floats + links, floats + links, "HNSW of whole vectors in memory"))
    if dimension <= WIDEST_PGVECTOR:
        half = dimension > WIDEST_PGVECTOR // 2 or wanted.precision != "float32"
        size = (2.0 if half else 4.0) * dimension
        note = "?vectors=half, HNSW m 16 in memory" if half else "HNSW m 16 in memory"
        # The table and the index each hold the vectors.
        shapes.append(("PostgreSQL", size + links, 2 * size + links, note))
    for engine, memory, disk, note in shapes:
        machines = math.ceil(rows * memory / (USABLE * wanted.machine_gb * GB))
        found.append(Held(engine, rows * memory, rows * disk, machines, note))
    return found


def _line(key: str, name: str, figure: Figure, shown: str) -> Line:
    return Line(key, name, figure.value, shown, figure.basis, figure.source)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.3g}"
