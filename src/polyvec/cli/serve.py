"""Serve models over HTTP: OpenAI's embeddings, reranking, sparse vectors, tokens, metrics.

A model is a folder, hub id, GGUF file or recipe, or NAME=MODEL to choose the name that requests
ask for. Keys are read from a file or from POLYVEC_API_KEY (several with commas); without any, only
this machine should reach the port. Ends on SIGTERM or SIGINT after it answered what it accepted.

example: polyvec serve --port 8000
"""

import argparse
import dataclasses
import ipaddress
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.index.store import Index
    from polyvec.interfaces import TextEncoder
    from polyvec.rerank.reranker import Reranker
    from polyvec.serve.settings import ServerSettings

KEYS = "POLYVEC_API_KEY"

_share = common.number("a share: above 0, at most 1", lambda found: 0 < found <= 1)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        metavar="[NAME=]MODEL",
        help="serve these; the first is the default; default: all-MiniLM-L6-v2",
    )
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="[NAME=]WHERE",
        help="search this index, with the model that made it; repeatable",
    )
    parser.add_argument(
        "--reranker",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="rank documents by this cross-encoder where a request names it as its model, or by "
        "another kind: 'NAME=KIND KEY=VALUE ...', as search --rerank; repeatable",
    )
    parser.add_argument("--host", default="127.0.0.1", help="listen here; default: %(default)s")
    parser.add_argument(
        "--port", type=_port, default=8000, help="listen on this port; 0: any; default: %(default)s"
    )
    parser.add_argument(
        "--api-key-file", type=common.path, metavar="FILE", help="a key a line; requests need one"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="let pages of this origin call; default: none",
    )
    parser.add_argument(
        "--allow-host",
        type=_host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this name, or any (*); repeatable; default: localhost and addresses if "
        "only this machine reaches the port, else any",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut longer texts, and say so in a header; default: refuse them",
    )
    for name, default, text in (
        ("max-batch-tokens", 4096, "compute at most so many tokens at a time"),
        ("max-queued-tokens", 200_000, "let so many tokens wait, refuse more with 429"),
        ("max-texts", 2048, "take so many texts in a request"),
        ("max-megabytes", 16, "take so large a request"),
    ):
        parser.add_argument(
            f"--{name}", type=common.positive, metavar="N", help=f"{text}; default: {default}"
        )
    parser.add_argument(
        "--client-share",
        type=_share,
        metavar="X",
        help="let one client, which is a key or else an address, have at most this share of what "
        "waits; default: 0.5",
    )
    parser.add_argument(
        "--timeout",
        type=common.positive,
        metavar="SECONDS",
        help="answer within this time or refuse; default: 30",
    )
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        help="compute short texts that come alone, such as queries, by torch (default) or onnx: "
        "ONNX Runtime, in two thirds of the time (BERT's family, float32, CPU)",
    )
    common.how_to_run(parser)


def run(options: argparse.Namespace) -> None:
    settings = _settings(options)
    from polyvec.serve.app import create_app
    from polyvec.serve.listening import listening, serve

    # Before the models are loaded, which takes longer.
    at = listening(options.host, options.port)
    try:
        models = _models(options)
        rerankers = _rerankers(options)
        settings = dataclasses.replace(settings, hosts=_hosts(options, at.getsockname()[0]))
        app = create_app(models, settings, indexes=_indexes(options, models), rerankers=rerankers)
        _show_logs()
        host, port = at.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _say(f"listening on http://{shown}:{port}; docs: http://{shown}:{port}/docs")
        if not settings.api_keys and not _is_loopback(host):
            _say(f"anyone who reaches {shown}:{port} may use it; see --api-key-file")
        serve(app, at)
    finally:
        at.close()


def _settings(options: argparse.Namespace) -> "ServerSettings":
    from polyvec.serve.settings import ServerSettings

    given = {
        "max_batch_tokens": options.max_batch_tokens,
        "max_queued_tokens": options.max_queued_tokens,
        "max_texts": options.max_texts,
        "max_bytes": options.max_megabytes and options.max_megabytes * 2**20,
        "client_share": options.client_share,
        "timeout": options.timeout,
    }
    return ServerSettings(
        truncate=options.truncate,
        api_keys=_keys(options.api_key_file),
        origins=tuple(options.allow_origin),
        **{name: value for name, value in given.items() if value is not None},
    )


def _hosts(options: argparse.Namespace, address: str) -> tuple[str, ...]:
    """Names under which the server is asked; none if any name will do.

    address: that it is bound to. Who cannot reach it may still have a browser on this machine ask
    it, under a name that is made to point here.
    """
    if not options.allow_host and not _is_loopback(address):
        return ()
    names = ("localhost", options.host.lower().removesuffix("."), *options.allow_host)
    return tuple(dict.fromkeys(names))


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _keys(file: Path | None) -> tuple[str, ...]:
    lines = os.environ.get(KEYS, "").split(",")
    if file is not None:
        lines += file.read_text("utf-8").splitlines()
    found = tuple(line.strip() for line in lines if line.strip())
    if file is not None and not found:
        raise InputError(f"{file}: holds no key")
    return found


def _models(options: argparse.Namespace) -> "dict[str, TextEncoder]":
    from polyvec.embed.schemes import scheme_of

    found: dict[str, TextEncoder] = {}
    for each in options.models or [None]:
        options.model, name = each, None
        # A path may hold "=", so what is there as it is written is a path.
        if each is not None and "=" in each and not Path(each).exists():
            name, _, options.model = each.partition("=")
        if scheme_of(options.model) is not None:
            raise InputError(
                f"{options.model}: a model behind an API is not served again: its texts would be "
                "sent, and paid for, without the client's knowledge"
            )
        model = common.load_model(options)
        name = name or Path(common.model_name(options)).name.removesuffix(".toml")
        if name in found:
            raise InputError(f"{name}: two models of this name; write NAME=MODEL")
        found[name] = model
    return found


def _rerankers(options: argparse.Namespace) -> "dict[str, Reranker]":
    """What --reranker says: NAME=MODEL of a cross-encoder, or NAME=KIND KEY=VALUE ..."""
    from polyvec.embed.schemes import scheme_of
    from polyvec.rerank.table import load_reranker

    found: dict[str, Reranker] = {}
    for each in options.reranker:
        name, equals, what = each.partition("=")
        if not equals or not name or not what:
            raise InputError(f"--reranker {each!r}: expected NAME=MODEL")
        if name in found:
            raise InputError(f"{name}: two rerankers of this name")
        is_folder = " " not in what or Path(what).exists()
        table: dict[str, Any] = {"kind": "cross_encoder", "model": what}
        table = table if is_folder else common.kind_table("--reranker", what)
        model = table.get("model")
        if isinstance(model, str) and ("://" in model or scheme_of(model) is not None):
            raise InputError(
                f"--reranker {name}: a model behind an API is not served again: its texts would "
                "be sent, and paid for, without the client's knowledge"
            )
        if "seconds" in table:
            raise InputError(
                f"--reranker {name}: seconds is a budget of one query alone; a server shares its "
                "batches, see --timeout"
            )
        found[name] = load_reranker(table, where=f"--reranker {name}")
    return found


def _indexes(
    options: argparse.Namespace, models: "dict[str, TextEncoder]"
) -> "dict[str, tuple[Index, TextEncoder]]":
    """Indexes with the models that made them: one that is served, or loaded for it."""
    from polyvec.index.store import Index

    found: dict[str, tuple[Index, TextEncoder]] = {}
    for each in options.index:
        name, where = None, each
        if "=" in each and not Path(each).exists() and "://" not in each.partition("=")[0]:
            name, _, where = each.partition("=")
        name = name or where.rstrip("/").rpartition("/")[2]
        if name in found:
            raise InputError(f"{name}: two indexes of this name; write NAME=WHERE")
        index = Index.open(where)
        made = index.description.model_sha256
        model = next((one for one in models.values() if one.fingerprint() == made), None)
        if model is None:
            own = argparse.Namespace(**{**vars(options), "model": None, "recipe": None})
            own.scale, own.attention, own.truncate_dim = None, None, None
            common.as_built(own, index.description)
            model = common.load_truncated(own)
        index.check(model)
        found[name] = index, model
    return found


def _show_logs() -> None:
    import logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("polyvec.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _port(given: str) -> int:
    if not given.isdigit() or int(given) > 65_535:
        raise argparse.ArgumentTypeError(f"{given!r} is not a port: 0 to 65535")
    return int(given)


def _host_name(given: str) -> str:
    if given != "*" and (not given or set(given) & set(":/@* ")):
        raise argparse.ArgumentTypeError(
            f"{given!r} is not a name as in example.org, without scheme and port"
        )
    return given.lower().removesuffix(".")
