"""Templates: a text and what surrounds it become spans that say what is pooled.

A template is one string per side. Read once, it holds:

    {text} {!text}      the user's text, pooled; seen but not pooled
    {instruction} ...   the same for {instruction}, {title}, {examples} and declared fields
    literal             literal text, pooled if the template says pool_prompt
    {+literal}          literal text, always pooled
    {bos} {eos} {mask}  the tokenizer's token, at most once; also {+eos} and {!eos}
    {#2}                what follows is segment 2, for masks between segments
    {|}                 what follows is tokenised as a string of its own
    {{ }}               braces

Braces and special-token strings in a value stay characters (SILENT row 32).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.inputs.spans import Span
from polyvec.errors import InputError, SettingsError, known

SLOTS = ("text", "instruction", "title", "examples")
TOKENS = ("bos", "eos", "mask")
ROLES = ("query", "document")

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# A private-use character in place of {text} while a chat template is applied.
_TEXT_IN_CHAT = "\ue000"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a form: literal text, a slot's name or the name of a tokenizer's token."""

    kind: Literal["literal", "slot", "token"]
    value: str
    pooled: bool
    segment: int = 0
    cut: bool = False

    def span(self, text: str, *, cut: bool = False) -> Span:
        """The piece's span: slots hold data, and only the user's text may be truncated."""
        data = self.kind == "slot"
        fixed = not (data and self.value == "text")
        return Span(
            text,
            self.pooled,
            markup=not data,
            fixed=fixed,
            segment=self.segment,
            cut=cut or self.cut,
        )


def compile_form(
    form: str, *, where: str, slots: Sequence[str], tokens: Sequence[str], pool_prompt: bool
) -> tuple[Piece, ...]:
    """The pieces of one template string, in order.

    Raises SettingsError for an unmatched brace, an unknown slot or a token that occurs twice.
    """
    pieces: list[Piece] = []
    literal, segment, end, cut = "", 0, 0, False

    def add(piece: Piece) -> None:
        nonlocal cut
        pieces.append(replace(piece, cut=cut))
        cut = False

    for match in _PIECE.finditer(form):
        literal += form[end : match.start()]
        end = match.end()
        body = match.group(1)
        if match.group() in ("{{", "}}"):
            literal += match.group()[0]
            continue
        if body is None:
            raise SettingsError(
                f"{where}: {match.group()!r} at character {match.start()} is unmatched; "
                f"write {match.group() * 2!r} for a literal brace"
            )
        if literal:
            add(Piece("literal", literal, pool_prompt, segment))
            literal = ""
        if body == "|":
            cut = True
        elif re.fullmatch(r"#\d+", body):
            segment = int(body[1:])
        else:
            add(_braced(body, segment, where, slots, tokens, pool_prompt))
    if literal := literal + form[end:]:
        add(Piece("literal", literal, pool_prompt, segment))
    named = [piece.value for piece in pieces if piece.kind == "token"]
    if twice := [name for name in tokens if named.count(name) > 1]:
        raise SettingsError(
            f"{where}: {{{twice[0]}}} occurs {named.count(twice[0])} times, expected once"
        )
    return tuple(pieces)


def _braced(
    body: str,
    segment: int,
    where: str,
    slots: Sequence[str],
    tokens: Sequence[str],
    pool_prompt: bool,
) -> Piece:
    """The piece between one pair of braces."""
    sign, name = (body[0], body[1:]) if body[:1] in ("!", "+") else ("", body)
    if name in tokens:
        return Piece("token", name, pool_prompt if not sign else sign == "+", segment)
    if sign == "+" and name:
        return Piece("literal", name, True, segment)
    if name not in slots:
        raise SettingsError(
            f"{where}: slot {name!r} is not known." + known(name, (*slots, *tokens))
        )
    return Piece("slot", name, not sign, segment)


@dataclass(frozen=True, slots=True)
class Template:
    """What the model reads for a query and for a document.

    Several strings on one side are forms whose vectors are averaged (MetaEOL). `pool_prompt` is
    required: pooling an instruction that training excluded, or the reverse, goes unnoticed
    (SILENT row 12). `example` is the format of one demonstration with {query}, {document} and
    {instruction}; `example_separator` follows each, and `examples` are the default ones.
    `fields` names further slots. `added_tokens` become special tokens; those that the tokenizer
    already has keep their ids. With `pieces` each literal and each slot is tokenised as a string of
    its own, as in repositories that join lists of ids; {|} does so at one place. With `strip`
    white space around each value, and at the end of what is written, is dropped.

    >>> mine = Template("mine", ("query: {text}",), ("passage: {text}",), pool_prompt=True)
    >>> "".join(span.text for span in mine.render("a cat", "document")[0])
    'passage: a cat'

    Raises SettingsError if strings and settings do not fit together.
    """

    name: str
    query: tuple[str, ...]
    document: tuple[str, ...]
    pool_prompt: bool
    defaults: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    example: str | None = None
    example_separator: str = ""
    examples: tuple[Example, ...] = ()
    added_tokens: tuple[str, ...] = ()
    pieces: bool = False
    strip: bool = False
    source: str = ""
    forms: Mapping[str, tuple[tuple[Piece, ...], ...]] = field(init=False, repr=False)
    example_form: tuple[Piece, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pool_prompt, bool):
            raise SettingsError(
                f"template {self.name!r}: pool_prompt must be true or false, not "
                f"{self.pool_prompt!r}; it says whether the template's literal text is pooled"
            )
        forms = {role: tuple(map(self._compiled(role), getattr(self, role))) for role in ROLES}
        object.__setattr__(self, "forms", forms)
        where = f"template {self.name!r} (example)"
        slots = ("instruction", *ROLES)
        compiled = compile_form(
            self.example or "", where=where, slots=slots, tokens=(), pool_prompt=True
        )
        object.__setattr__(self, "example_form", compiled)
        self._check_settings()

    def _compiled(self, role: str) -> Callable[[str], tuple[Piece, ...]]:
        """Compiles one of the role's strings; it must read a text and pool something."""

        def compiled(form: str) -> tuple[Piece, ...]:
            where, slots = self._where(role), (*SLOTS, *self.fields)
            pieces = compile_form(
                form, where=where, slots=slots, tokens=TOKENS, pool_prompt=self.pool_prompt
            )
            if not any(p.kind == "slot" and p.value == "text" for p in pieces):
                raise SettingsError(f"{where}: no {{text}} or {{!text}} in {form!r}")
            if not any(p.pooled for p in pieces):
                raise SettingsError(f"{where}: nothing is pooled in {form!r}")
            return pieces

        return compiled

    def _check_settings(self) -> None:
        """Raises SettingsError for settings that are missing or have no effect."""
        where = f"template {self.name!r}"
        for role in ROLES:
            if not self.forms[role]:
                raise SettingsError(f"{self._where(role)}: expected at least one string, got none")
        free = {slot for role in ROLES for slot in self.slots(role)} - {"text", "examples"}
        for name in (*self.defaults, *self.fields):
            if name not in free:
                raise SettingsError(f"{where}: {name!r} fills no slot." + known(name, free))
        shows = any("examples" in self.slots(role) for role in ROLES)
        if shows != bool(self.example):
            raise SettingsError(
                f"{where}: an {{examples}} slot needs `example`, the format of one, and vice versa"
            )
        if (self.examples or self.example_separator) and not shows:
            raise SettingsError(f"{where}: examples are set, but no form has an {{examples}} slot")
        pieces = [piece for role in ROLES for form in self.forms[role] for piece in form]
        literals = [
            piece.value for piece in (*pieces, *self.example_form) if piece.kind == "literal"
        ]
        for token in self.added_tokens:
            if not any(token in literal for literal in literals):
                raise SettingsError(f"{where}: added token {token!r} occurs in none of its forms")

    def _where(self, role: str) -> str:
        return f"template {self.name!r} ({role} form)"

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for `from_dict`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        shown = [asdict(example) for example in self.examples]
        return {**plain, "defaults": dict(self.defaults), "examples": shown}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Template":
        """The template with these settings, as JSON has them; SettingsError for unknown keys."""
        names = [f.name for f in fields(cls) if f.init]
        for key in values:
            if key not in names:
                raise SettingsError(f"template key {key!r} is not known.{known(key, names)}")
        read: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        for side in ROLES:
            if isinstance(read.get(side), str):
                read[side] = (read[side],)
        shown = tuple(
            each if isinstance(each, Example) else Example(**each)
            for each in read.get("examples", ())
        )
        read = {"name": "inline", **read, "examples": shown}
        missing = {"query", "pool_prompt"} - set(read)
        if missing:
            raise SettingsError(f"template {read['name']!r}: key {sorted(missing)[0]!r} is missing")
        return cls(**{"document": read["query"], **read})

    def num_forms(self, role: str | None = None) -> int:
        """How many inputs of one text are averaged."""
        return len(self.forms[_side(role)])

    def slots(self, role: str | None = None) -> tuple[str, ...]:
        """The slots of one side, without repeats, in order."""
        pieces = (piece for form in self.forms[_side(role)] for piece in form)
        return tuple(dict.fromkeys(piece.value for piece in pieces if piece.kind == "slot"))

    def render(
        self,
        text: str,
        role: str | None = None,
        *,
        instruction: str | None = None,
        examples: Sequence[Example] | None = None,
        bos: str | None = None,
        eos: str | None = None,
        mask: str | None = None,
        **fields: str | None,
    ) -> tuple[tuple[Span, ...], ...]:
        """The spans of each form; without a role those of a query, as in symmetric tasks.

        `bos` and `eos` are None where the tokenizer adds its own. `examples` None shows the
        template's own, () none. A value of None counts as not given.
        Raises InputError for an empty slot and for a value without a slot.
        """
        side = _side(role)
        given = {"instruction": instruction, **fields}
        values = self._values(side, {k: v for k, v in given.items() if v is not None})
        if examples and "examples" not in self.slots(side):
            raise InputError(self._no_slot(side, "examples"))
        shown = self.examples if examples is None else examples
        tokens = {"bos": bos, "eos": eos, "mask": mask}
        values["text"] = text
        if self.strip:
            values = {name: value.strip() for name, value in values.items()}
        return tuple(
            tuple(self._form(form, values, tokens, shown, side)) for form in self.forms[side]
        )

    def _form(
        self,
        form: tuple[Piece, ...],
        values: Mapping[str, str],
        tokens: Mapping[str, str | None],
        examples: Sequence[Example],
        side: str,
    ) -> list[Span]:
        """The spans of one form."""
        found: list[Span] = []
        ends: list[Span] = []  # the tokens after what is written
        for piece in form:
            spans = self._spans(piece, values, tokens, examples, side)
            if piece.kind == "token":
                ends += spans
            else:
                found, ends = [*found, *ends, *spans], []
        if self.strip:
            while len(found) > 1 and not found[-1].text.strip():
                found.pop()
            found[-1] = replace(found[-1], text=found[-1].text.rstrip())
        return found + ends

    def _values(self, side: str, given: Mapping[str, str]) -> dict[str, str]:
        """The values of a side's slots other than the text: the given ones and the defaults."""
        takes = [slot for slot in self.slots(side) if slot not in ("text", "examples")]
        for name in given:
            if name not in takes:
                raise InputError(self._no_slot(side, name))
        values = {**{k: v for k, v in self.defaults.items() if k in takes}, **given}
        for name in takes:
            if name not in values:
                raise InputError(f"{self._where(side)} needs {name!r}: give {name}='...'")
        return values

    def _no_slot(self, side: str, name: str) -> str:
        return f"{self._where(side)} has no slot for {name!r}." + known(name, self.slots(side))

    def _spans(
        self,
        piece: Piece,
        values: Mapping[str, str],
        tokens: Mapping[str, str | None],
        examples: Sequence[Example],
        side: str,
    ) -> Iterator[Span]:
        """The spans of one piece of a form."""
        if piece.kind == "literal":
            yield piece.span(piece.value, cut=self.pieces)
        elif piece.kind == "slot" and piece.value == "examples":
            for example in examples:
                yield from self._example_spans(example, piece, values.get("instruction"))
        elif piece.kind == "slot":
            yield piece.span(values[piece.value], cut=self.pieces)
        elif token := tokens[piece.value]:
            yield piece.span(token)
        elif piece.value == "mask":
            raise InputError(f"{self._where(side)} needs a mask token, the tokenizer has none")

    def _example_spans(
        self, example: Example, slot: Piece, instruction: str | None
    ) -> Iterator[Span]:
        """One demonstration and its separator; never truncated."""
        values = {"query": example.query, "document": example.document}
        used = example.instruction if example.instruction is not None else instruction
        takes = {piece.value for piece in self.example_form if piece.kind == "slot"}
        if example.instruction is not None and "instruction" not in takes:
            raise InputError(
                f"template {self.name!r}: an example has an instruction, for which its format "
                f"{self.example!r} has no slot"
            )
        if used is not None:
            values["instruction"] = used
        for piece in (*self.example_form, Piece("literal", self.example_separator, True)):
            text = piece.value if piece.kind == "literal" else values.get(piece.value)
            if text is None:
                raise InputError(
                    f"template {self.name!r}: an example needs an instruction; set it on the "
                    "example or pass a prompt"
                )
            if text:
                markup = piece.kind == "literal"
                yield Span(
                    text,
                    slot.pooled,
                    markup=markup,
                    fixed=True,
                    segment=slot.segment,
                    cut=self.pieces,
                )


def _side(role: str | None) -> str:
    """The template's side for a role; None is the query's."""
    if role not in (None, *ROLES):
        raise InputError(f"role {role!r} is not known." + known(str(role), ROLES))
    return role or "query"


def from_chat(
    name: str,
    query: Sequence[tuple[str, str]],
    document: Sequence[tuple[str, str]],
    apply: Callable[[list[dict[str, str]]], str],
    *,
    pool_prompt: bool,
    bos: str | None = None,
    source: str = "",
) -> Template:
    """A template from (role, content) messages with {text} in one, in a tokenizer's chat format.

    `apply` is the tokenizer's chat template; if the last message is the assistant's,
    `lambda m: tok.apply_chat_template(m, tokenize=False, continue_final_message=True)`.
    A leading `bos` becomes {bos}, so that it is never doubled.
    Raises SettingsError if the chat template drops the text.
    """

    def form(messages: Sequence[tuple[str, str]]) -> str:
        filled = [
            {"role": role, "content": content.replace("{text}", _TEXT_IN_CHAT)}
            for role, content in messages
        ]
        chat = apply(filled)
        if chat.count(_TEXT_IN_CHAT) != 1:
            raise SettingsError(
                f"template {name!r}: {{text}} occurs {chat.count(_TEXT_IN_CHAT)} times in the "
                "chat format, expected once"
            )
        lead = "{bos}" if bos and chat.startswith(bos) else ""
        chat = chat.removeprefix(bos or "").replace("{", "{{").replace("}", "}}")
        return lead + chat.replace(_TEXT_IN_CHAT, "{text}")

    return Template(name, (form(query),), (form(document),), pool_prompt, source=source)
