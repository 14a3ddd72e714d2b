"""The command `serve`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from compiler.cli import options as shared
from compiler.cli.common import device_errors, notices, open_bundle, out, require_packages
from compiler.errors import BundleError, OptionError

if TYPE_CHECKING:
    import uvicorn

    from compiler.runtime import Bundle
    from compiler.runtime.fleet import HostThreads
    from compiler.runtime.language import LanguageModel
    from compiler.runtime.server import Web
    from compiler.runtime.server.endpoints import Server

KEY_VARIABLE = "CORAL_BUNDLE_API_KEY"
# Bytes of a request: of text, and of a picture as cameras write it.
_TEXT_BYTES = 1 << 20
PICTURE_BYTES = 16 << 20
# ZeroMQ endpoints that only this machine can reach.
_LOCAL_ENDPOINTS = ("ipc://", "tcp://127.0.0.1:", "tcp://localhost:", "tcp://[::1]:")


def serve(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="The bundle of a language model, an encoder with its tokenizer, a classifier or a "
            "detector.",
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
    max_body: Annotated[
        int | None,
        typer.Option(
            min=1024, help="Bytes of a request at most. Default: 1 MiB; 16 MiB for pictures."
        ),
    ] = None,
    max_texts: Annotated[
        int, typer.Option(min=1, help="Texts of a request for embeddings at most.")
    ] = 2048,
    zmq: Annotated[
        str | None,
        typer.Option(
            metavar="ENDPOINT",
            help="Serve Frigate's ZMQ detector there instead of HTTP: ipc:///tmp/cache/detector or "
            "tcp://127.0.0.1:5555.",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="A folder for prompts that were read, of up to 2 GiB: texts that begin alike are "
            "read once, also by the next server."
        ),
    ] = None,
    devices: shared.Devices = "auto",
    threads: shared.Threads = 2,
    host_workers: shared.HostWorkers = None,
) -> None:
    """Serve a bundle over HTTP.

    A language model or an encoder is served as by OpenAI's API and by Ollama's. An encoder is a
    bundle that was built with --tokenizer.

    A classifier or a detector takes pictures: POST one to /v1/vision/classify or /v1/vision/detect.
    A detector also answers clients of DeepStack at /v1/vision/detection, and with --zmq Frigate.
    """
    from compiler.runtime.fleet import HostThreads

    bundle = open_bundle(path)
    workers = HostThreads(threads, host_workers)
    if zmq is not None:
        _serve_frigate(bundle, zmq, max_body or PICTURE_BYTES, devices, workers)
        return
    takes_pictures = "vision" in bundle.manifest
    require_packages("serve", "vision" if takes_pictures else "text")
    from compiler.runtime.server import Access, Limits, ModelCard, Web
    from compiler.runtime.server.guard import LOCAL_HOSTS

    # The command line takes an empty variable for none; it must not leave the server open.
    key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    body_bytes = max_body or (PICTURE_BYTES if takes_pictures else _TEXT_BYTES)
    limits = Limits(body_bytes, max_tokens, texts=max_texts, waiting=waiting)
    try:
        access = Access.of(address, allow_host or (), allow_origin or ())
        card = ModelCard.of(bundle)
        web = Web(path.name.removesuffix(".bundle"), key, limits, access, card)
    except ValueError as error:
        raise OptionError(f"serve: {error}") from error
    if not key and address not in LOCAL_HOSTS:
        notices([f"--address {address}: there is no key, and other machines may reach it"])
    with device_errors():
        if "language" in bundle.manifest:
            model = _language_model(bundle, devices, workers, slots)
            server, purpose = _language_server(web, bundle, model, cache_dir)
        elif takes_pictures:
            server, purpose = _vision_server(web, bundle, devices, workers)
        else:
            server, purpose = _embedding_server(web, bundle, devices, workers)
    _listen(server, address, port, f"Serving {escape(web.name)} on", purpose)


def _language_model(
    bundle: Bundle, devices: str, threads: HostThreads, slots: int | None
) -> LanguageModel:
    from compiler.runtime.language import LanguageModel

    count = slots or bundle.manifest["language"]["slots"]
    model = LanguageModel(bundle, threads, count, devices=devices)
    notices(model.fleet.notices)
    return model


def _language_server(
    web: Web, bundle: Bundle, model: LanguageModel, cache_dir: Path | None
) -> tuple[Server, str]:
    from compiler.runtime.batching import Batcher
    from compiler.runtime.prefixes import PrefixStore
    from compiler.runtime.server import CompletionServer
    from compiler.runtime.text import Text

    store = None
    if cache_dir is not None:
        try:
            store = PrefixStore(cache_dir, web.card.digest)
        except OSError as error:
            reason = error.strerror or error
            raise OptionError(f"--cache-dir {cache_dir}: cannot be made: {reason}") from error
    batcher = Batcher(model, web.limits.waiting, store)
    return CompletionServer(web, Text(bundle), batcher), f"with {len(model.slots)} slots"


def _embedding_server(
    web: Web, bundle: Bundle, devices: str, threads: HostThreads
) -> tuple[Server, str]:
    from compiler.runtime.embedding import Embedder
    from compiler.runtime.server import EmbeddingServer

    embedder = Embedder(bundle, threads, devices)
    notices(embedder.fleet.notices)
    return EmbeddingServer(web, embedder), "for embeddings"


def _vision_server(
    web: Web, bundle: Bundle, devices: str, threads: HostThreads
) -> tuple[Server, str]:
    from compiler.runtime import Runner
    from compiler.runtime.server import VisionServer
    from compiler.runtime.vision import VisionError

    runner = Runner(bundle, devices, threads)
    notices(runner.notices)
    try:
        server = VisionServer(web, runner)
    except VisionError as error:
        runner.close()
        raise BundleError(f"{bundle.path}: {error}") from error
    return server, "for pictures"


def _serve_frigate(
    bundle: Bundle, endpoint: str, most_bytes: int, devices: str, threads: HostThreads
) -> None:
    """Serve Frigate's ZMQ detector until interrupted."""
    import asyncio

    from compiler.runtime import Runner
    from compiler.runtime.frigate import FrigateDetector, listen
    from compiler.runtime.vision import VisionError

    require_packages("serve", "frigate")
    if not endpoint.startswith(_LOCAL_ENDPOINTS):
        notices([f"--zmq {endpoint}: has no key, and other machines may reach it"])

    def ready(address: str) -> None:
        out.print(
            f"Serving {escape(bundle.path.name)} on {escape(address)} for Frigate; Ctrl-C ends it.",
            soft_wrap=True,
        )

    with device_errors(), Runner(bundle, devices, threads) as runner:
        notices(runner.notices)
        try:
            detector = FrigateDetector(runner, lambda text: notices([text]))
            asyncio.run(listen(endpoint, detector, most_bytes, runner.depth, ready))
        except VisionError as error:
            raise BundleError(f"{bundle.path}: {error}") from error
        except OSError as error:
            reason = error.strerror or error
            raise OptionError(f"--zmq {endpoint}: cannot be listened on: {reason}") from error


def _listen(server: Server, address: str, port: int, greeting: str, purpose: str) -> None:
    import uvicorn

    from compiler.runtime.server import application
    from compiler.runtime.server.protocol import uvicorn_config

    config = uvicorn_config(application(server), address, port)
    listening = _bind(config, address, port)
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{listening.getsockname()[1]}"
    out.print(f"{greeting} {url} {purpose}; Ctrl-C ends it.", soft_wrap=True)
    uvicorn.Server(config).run([listening])


def _bind(config: uvicorn.Config, address: str, port: int) -> socket.socket:
    """A socket that listens already, so that what we say next is true. Raises OptionError."""
    try:
        listening = config.bind_socket()
        # Connections take this over from the socket. asyncio sets it for its own sockets only, and
        # without it the body of an answer waits 40 ms for its head to be acknowledged.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.listen(config.backlog)
        return listening
    except (OSError, SystemExit) as error:
        raise OptionError(f"--address {address} --port {port}: cannot be listened on") from error
