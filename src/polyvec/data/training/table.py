"""A `data` table of a stage: where examples come from, and how they are read and drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyvec.data.training.cells import Columns, Where
from polyvec.errors import SettingsError
from polyvec.settings import fill


@dataclass(frozen=True, slots=True)
class DataTable:
    """One source of examples; `path`, `name` or `hub` says which.

    path: a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, each also .gz), a folder of such
        files, each a data set, or a folder of BEIR's form.
    name: a set of named_sets.toml, below the folder of data sets; beside a path, what it is called.
    hub: id of a data set of the Hugging Face hub; `subset`, `split` and `revision` select in it.
        With the split "*" each split is a data set; with `files`, patterns of names, each file is.
    format: a name in FORMATS, "beir" or "tevatron_ids"; by default what the columns show.
    columns: the file's column for a field of the format: {query = "question"}; "title+text" joins
        two, a list of columns is a list of texts.
    where: only rows whose column has this value, or one of these.
    corpus: a file of documents with ids, for formats that name documents by id.
    instruction, document_instruction: what to do with queries and documents; instructions: by the
        name of the data set. They replace those of the rows.
    instructed: take the instruction that instructions.toml has for the data set's name.
    symmetric: documents are the same kind of text as queries and take their instruction or prompt.
    in_batch: whether documents of other rows count as negatives.
    num_positives, num_negatives: most of each that are taken in an epoch; None takes all. Which
        ones is drawn anew each epoch; without shuffle_positive the first positives are taken.
    negatives_first: so many of the first negatives are always taken; of Promptriever's data, of
        its instruction negatives.
    min_score: pairs with at least this score become positives, other pairs are left out.
    limit: most rows of a data set; which ones is drawn by the seed.
    skip_empty: leave out rows with an empty text, which are an error otherwise.
    held_out: share of the queries, by their hash, that is kept from training.
    part: "train", or "held_out" for the rest.
    group: rows of another group than "" stand beside the others in a batch (see Mixing).
    weight: of the set in the mixture, in place of its size.
    """

    path: str | None = None
    name: str | None = None
    hub: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    files: str | tuple[str, ...] = ()
    format: str | None = None
    columns: Columns = field(default_factory=dict)
    where: Where = field(default_factory=dict)
    corpus: str | None = None
    instruction: str | None = None
    document_instruction: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    instructed: bool = False
    symmetric: bool = False
    in_batch: bool = True
    num_positives: int | None = 1
    num_negatives: int | None = None
    shuffle_positive: bool = True
    negatives_first: int = 0
    min_score: float | None = None
    limit: int | None = None
    skip_empty: bool = False
    held_out: float = 0.0
    part: str = "train"
    group: str = ""
    weight: float | None = None


def data_table(raw: Mapping[str, Any], where: str = "data") -> DataTable:
    """The checked table. Raises SettingsError for an unknown key, a wrong type or value."""
    found: DataTable = fill(DataTable, dict(raw), where)
    for name, least in (("num_positives", 1), ("num_negatives", 0), ("limit", 1)):
        value = getattr(found, name)
        if value is not None and value < least:
            raise SettingsError(f"{where} key {name!r} is {value}, expected at least {least}")
    if not 0 <= found.held_out < 1:
        raise SettingsError(f"{where} key 'held_out' is {found.held_out}, expected 0 to below 1")
    if found.part not in ("train", "held_out"):
        raise SettingsError(f"{where} key 'part' is {found.part!r}, not 'train' or 'held_out'")
    if found.part == "held_out" and not found.held_out:
        raise SettingsError(
            f"{where}: part 'held_out' needs held_out, the share kept from training"
        )
    if found.weight is not None and not found.weight > 0:
        raise SettingsError(f"{where} key 'weight' is {found.weight}, expected above 0")
    if not (found.path or found.name or found.hub):
        raise SettingsError(f"{where}: name the data with path, name or hub")
    if found.files and not found.hub:
        raise SettingsError(f"{where}: files selects files of a data set of the hub, not of a path")
    if found.path and found.hub:
        raise SettingsError(f"{where}: path and hub cannot both be given")
    return found
