"""The command `serve`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from compiler.cli import options as shared
from compiler.cli.common import device_errors, notices, open_bundle, out
from compiler.errors import OptionError

if TYPE_CHECKING:
    import uvicorn

    from compiler.runtime import Bundle
    from compiler.runtime.server import EmbeddingServer, Server, Web

KEY_VARIABLE = "CORAL_BUNDLE_API_KEY"
KEEP_ALIVE_SECONDS = 10
# Bytes of a request's head.
HEAD_BYTES = 16384


def serve(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE", help="A language model's bundle, or an encoder's with a tokenizer."
        ),
    ],
    address: Annotated[
        str, typer.Option(help="Where to listen; only this machine can reach the default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="Texts that are written at once. Default: what the bundle was built for."
        ),
    ] = None,
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for a slot; more are refused.")
    ] = 32,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY_VARIABLE, help="What clients must send as a bearer token."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients may call this server by. May be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Web pages of this origin may ask: https://example.org. May be repeated."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request at most.")] = 1 << 20,
    max_texts: Annotated[
        int, typer.Option(min=1, help="Texts of a request for embeddings at most.")
    ] = 2048,
    devices: shared.Devices = "auto",
    threads: shared.Threads = 2,
) -> None:
    """Serve a language model or an encoder over HTTP, as OpenAI's API does.

    An encoder is a bundle that was built with --tokenizer.
    """
    from compiler.runtime.guard import Access
    from compiler.runtime.server import Limits, Web

    # The command line takes an empty variable for none; it must not leave the server open.
    key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    limits = Limits(max_body, max_tokens, texts=max_texts, waiting=waiting)
    try:
        access = Access.of(address, allow_host or (), allow_origin or ())
        web = Web(path.name.removesuffix(".bundle"), key, limits, access)
    except ValueError as error:
        raise OptionError(f"serve: {error}") from error
    bundle = open_bundle(path)
    with device_errors():
        if "language" in bundle.manifest:
            server, purpose = _language_server(web, bundle, devices, threads, slots)
        else:
            server, purpose = _embedding_server(web, bundle, devices, threads)
    _listen(server, address, port, f"Serving {escape(web.name)} on", purpose)


def _language_server(
    web: Web, bundle: Bundle, devices: str, threads: int, slots: int | None
) -> tuple[Server | EmbeddingServer, str]:
    from compiler.runtime.batching import Batcher
    from compiler.runtime.language import LanguageModel
    from compiler.runtime.server import Server
    from compiler.runtime.text import Text

    count = slots or bundle.manifest["language"]["slots"]
    model = LanguageModel(bundle, threads, count, devices=devices)
    notices(model.fleet.notices)
    batcher = Batcher(model, web.limits.waiting)
    return Server(web, Text(bundle), batcher), f"with {len(model.slots)} slots"


def _embedding_server(
    web: Web, bundle: Bundle, devices: str, threads: int
) -> tuple[Server | EmbeddingServer, str]:
    from compiler.runtime.embedding import Embedder
    from compiler.runtime.server import EmbeddingServer

    embedder = Embedder(bundle, threads, devices)
    notices(embedder.fleet.notices)
    return EmbeddingServer(web, embedder), "for embeddings"


def _listen(
    server: Server | EmbeddingServer, address: str, port: int, greeting: str, purpose: str
) -> None:
    import uvicorn

    from compiler.runtime.protocol import CONNECTIONS, HeadTimeoutProtocol

    config = uvicorn.Config(
        server.app(),
        http=HeadTimeoutProtocol,
        ws="none",
        limit_concurrency=CONNECTIONS + 1,  # the number that is refused
        host=address,
        port=port,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    listening = _bind(config, address, port)
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{listening.getsockname()[1]}"
    out.print(f"{greeting} {url} {purpose}; Ctrl-C ends it.", soft_wrap=True)
    uvicorn.Server(config).run([listening])


def _bind(config: uvicorn.Config, address: str, port: int) -> socket.socket:
    """A socket that listens already, so that what we say next is true. Raises OptionError."""
    try:
        listening = config.bind_socket()
        listening.listen(config.backlog)
        return listening
    except (OSError, SystemExit) as error:
        raise OptionError(f"--address {address} --port {port}: cannot be listened on") from error
