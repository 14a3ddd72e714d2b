"""A language model's bundle beside llama.cpp: tokens per second, memory, and agreement with the
float model.

    python -m benchmarks.generation MODEL.gguf [--llama PYTHON] [--prompt 512 --prompt 5600]

PYTHON is an interpreter of an environment with llama-cpp-python; it runs the same file with the
same threads, in turns with the bundle. Without it only our side is measured. Agreement: over 20
prompts, how many of the first 32 greedy tokens are the same as the float model's until the first
that differs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from compiler.driver import language
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.frontends import Source, decoder, open_source
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle
from compiler.runtime.text import Text

PROMPT_TOKENS, DECODED, THREADS, REPEATS = 512, 64, 2, 3
AGREE = 32
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The largest planet in the solar system is",
    "To make bread, you need",
    "The first president of the United States was",
    "Photosynthesis is the process by which",
    "Once upon a time, there was a",
    "The opposite of hot is",
    "In mathematics, a prime number is",
    "The best way to learn a new language is",
    "Shakespeare wrote",
    "The Pacific Ocean is",
    "A healthy breakfast consists of",
    "The speed of light is",
    "Dogs are known for",
    "The main causes of the First World War were",
    "To solve a quadratic equation,",
    "The human heart",
    "Computers store information",
    "My favourite season is",
)

# Runs in the other environment: answers requests, one in each line.
_PEER = f"""
import json, sys, time
import llama_cpp, numpy as np
source, context = sys.argv[1], int(sys.argv[2])
options = dict(n_ctx=context, n_batch=512, verbose=False)
options |= dict(n_threads={THREADS}, n_threads_batch={THREADS})
model = llama_cpp.Llama(source, **options)
def likeliest():
    logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    return int(np.argmax(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),))))
def speed(ids, count):
    model.reset()
    began = time.perf_counter()
    model.eval(ids)
    read = time.perf_counter()
    for _ in range(count):
        model.eval([5])
    return [len(ids) / (read - began), count / (time.perf_counter() - read)]
def text(ids, count):
    model.reset()
    model.eval(ids)
    made = []
    for _ in range(count):
        made.append(likeliest())
        model.eval(made[-1:])
    return made
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))
known = dict(speed=speed, text=text, resident=resident)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(known[name](*arguments)), flush=True)
"""
# The same of a bundle, so that its memory is that of a process of its own.
_OWN = f"""
import json, sys, time
from compiler.runtime import Bundle
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
model = LanguageModel(Bundle.open(sys.argv[1]), {THREADS})
def speed(ids, count):
    model.slots[0].tokens.clear()
    began = time.perf_counter()
    model.prefill(model.slots[0], ids)
    read = time.perf_counter()
    for _ in range(count):
        model.decode({{0: 5}})
    return [len(ids) / (read - began), count / (time.perf_counter() - read)]
def text(ids, count):
    model.slots[0].tokens.clear()
    return list(model.generate(ids, count, Sampling()))
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))
known = dict(speed=speed, text=text, resident=resident)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(known[name](*arguments)), flush=True)
"""


class Peer:
    """A process that answers requests; a context manager."""

    def __init__(self, *command: str | Path) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def agreement(prompts: list[list[int]], answers: list[list[int]], source: Source) -> list[int]:
    """For each answer, how many of its tokens are the float model's likeliest before the first that
    is not."""
    form = decoder.ProgramShape(1, 64, 64, all_logits=True)
    reference = decoder.write(source, form)
    found = []
    with Reference(reference) as runner:
        for tokens, got in zip(prompts, answers, strict=True):
            row = np.zeros(64, np.int64)
            whole = [*tokens, *got]
            row[: len(whole)] = whole
            logits = runner.run(decoder.sample(reference.graph, row, form), ["logits"])["logits"][0]
            wanted = logits[len(tokens) - 1 : len(whole) - 1].argmax(axis=-1)
            differs = np.nonzero(wanted != np.array(got))[0]
            found.append(int(differs[0]) if len(differs) else AGREE)
    return found


def measure(
    model: Path,
    llama: Path | None,
    lengths: Sequence[int] = (PROMPT_TOKENS,),
    options: BuildOptions | None = None,
) -> dict[str, Any]:
    """Everything above as figures; `llama` is the interpreter of llama.cpp's environment."""
    if options is None:
        options = BuildOptions(partitioning=PartitionOptions(place="host"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "b"
        began = time.perf_counter()
        manifest = language.build(model, path, options)
        found: dict[str, Any] = {"build_seconds": round(time.perf_counter() - began, 1)}
        found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        found["perplexity"] = manifest["quality"]["perplexity"]
        peers = {"bundle": stack.enter_context(Peer(sys.executable, "-c", _OWN, path))}
        if llama is not None:
            places = str(options.language.context)
            peers["llama.cpp"] = stack.enter_context(Peer(llama, "-c", _PEER, model, places))
        text = Text(Bundle.open(path))
        prompts = [text.encode(prompt) for prompt in PROMPTS]
        answers = {
            name: [peer.ask("text", prompt, AGREE) for prompt in prompts]
            for name, peer in peers.items()
        }
        found["answer"] = text.decode(answers["bundle"][0])
        found["tokens_per_second"] = {count: speeds(peers, count) for count in lengths}
        found["resident_mb"] = {name: round(peer.ask("resident")) for name, peer in peers.items()}
    source = open_source(model)
    found["agreement"] = {
        name: agreement(prompts, texts, source) for name, texts in answers.items()
    }
    return found


def speeds(peers: Mapping[str, Peer], count: int) -> dict[str, list[float]]:
    """(prefill, decode) tokens per second of each behind a prompt of so many tokens: medians of
    turns."""
    ids = np.random.default_rng(0).integers(100, 2000, count).tolist()
    rows: dict[str, list[list[float]]] = {name: [] for name in peers}
    for _ in range(REPEATS):
        for name, peer in peers.items():
            rows[name].append(peer.ask("speed", ids, DECODED))
    return {name: np.round(np.median(row, axis=0), 1).tolist() for name, row in rows.items()}


def summary(found: dict[str, Any]) -> str:
    lines = [
        f"build {found['build_seconds']} s, peak memory {found['peak_gb']} GB; "
        f"perplexity {found['perplexity']}",
        f"{PROMPTS[0]!r} -> {found['answer']!r}",
        f"resident memory in MB: {found['resident_mb']}",
    ]
    for name, same in found["agreement"].items():
        whole = sum(s == AGREE for s in same)
        lines.append(
            f"{name:10} {whole} of {len(same)} with {AGREE} greedy tokens as in float; {same}"
        )
    for count, rows in found["tokens_per_second"].items():
        for name, (prefill, decode) in rows.items():
            lines.append(
                f"{name:10} {count:5} tokens: prefill {prefill:8.1f} tokens/s   "
                f"decode {decode:6.1f} tokens/s   (median of {REPEATS})"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama", type=Path, help="python of an environment with llama-cpp-python")
    parser.add_argument("--place", default="host", help="where linear layers go: host, tpu or auto")
    parser.add_argument("--prompt", type=int, action="append", help="tokens of a prompt")
    parser.add_argument("--decode-weights", help="file, int8 or 4bit")
    given = parser.parse_args()
    lengths = given.prompt or [PROMPT_TOKENS]
    context = max(lengths) + DECODED + 32
    options = BuildOptions(
        partitioning=PartitionOptions(place=given.place),
        language=LanguageOptions(context, slots=1, decode_weights=given.decode_weights),
    )
    print(summary(measure(given.model, given.llama, lengths, options)))


if __name__ == "__main__":
    main()
