"""Serves a bundle over HTTP, in the way of OpenAI's API, Ollama's or DeepStack's; docs/security.md
says what limits hold.

A request passes through these files, from top to bottom:

protocol.py     connections: how long the head of a request may take, and an answer to be read
guard.py        refuses requests by their head: Host, Origin, Content-Type, ambiguous lengths
endpoints.py    the list of all endpoints, and the application that they make
web.py          what all endpoints share: the API key, the limits, the body
requests.py     which fields each endpoint takes, with defaults and limits, made of fields.py
completions.py  /v1/chat/completions and /v1/completions of a language model
embeddings.py   /v1/embeddings of an encoder
ollama.py       /api/... of both, whose fields ollama_requests.py has
vision.py       /v1/vision/... of a classifier or a detector, whose forms forms.py reads
status.py       /v1/models, /health and /metrics of all
answer.py       tokens of the model's thread become text for the event loop
formats.py      answers as OpenAI's clients read them; ollama_formats.py, as Ollama's do
card.py         what clients may know of the model
errors.py       errors as HTTP statuses

Threads. Everything that is `async` runs in one thread, on the event loop, and must not hold it up.
Long work goes to the threads of workers.py and is awaited: parsing, tokenizing, detokenizing, the
runs of an encoder, and decoding pictures. A language model has the thread of its `Batcher`; its
tokens come back to the event loop through `answer.TokenQueue` alone.
"""

from compiler.runtime.server.card import ModelCard
from compiler.runtime.server.completions import CompletionServer
from compiler.runtime.server.embeddings import EmbeddingServer
from compiler.runtime.server.endpoints import application
from compiler.runtime.server.guard import Access
from compiler.runtime.server.vision import VisionServer
from compiler.runtime.server.web import Limits, Web

__all__ = [
    "Access",
    "CompletionServer",
    "EmbeddingServer",
    "Limits",
    "ModelCard",
    "VisionServer",
    "Web",
    "application",
]
