"""A language model's bundle beside llama.cpp: tokens per second, answers, and agreement with the
float model.

    python -m benchmarks.generation MODEL.gguf [--llama PYTHON]

PYTHON is an interpreter of an environment with llama-cpp-python; it runs the same model, quantized
to Q8_0 by llama.cpp itself, with the same threads. Without it only our side is measured. Agreement:
over 20 prompts, how many of the first 32 greedy tokens are the same as the float model's until the
first that differs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from compiler.driver import language
from compiler.driver.options import BuildOptions
from compiler.frontends import Source, decoder, open_source
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions, PlacePolicy
from compiler.runtime import Bundle
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
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

# Runs in the other environment.
_PEER = f"""
import json, sys, time
import llama_cpp, numpy as np
source, made, prompts = sys.argv[1:4]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
parameters.allow_requantize = True
parameters.nthread = {THREADS}
assert llama_cpp.llama_model_quantize(source.encode(), made.encode(), parameters) == 0
options = dict(n_ctx=1024, n_batch=512, verbose=False)
options |= dict(n_threads={THREADS}, n_threads_batch={THREADS})
model = llama_cpp.Llama(made, **options)
ids = [int(i) for i in np.random.default_rng(0).integers(100, 2000, {PROMPT_TOKENS})]
rows = []
for _ in range({REPEATS}):
    model.reset()
    began = time.perf_counter()
    model.eval(ids)
    read = time.perf_counter()
    for _ in range({DECODED}):
        model.eval([5])
    rows.append(({PROMPT_TOKENS} / (read - began), {DECODED} / (time.perf_counter() - read)))
texts, model = [], llama_cpp.Llama(made, logits_all=True, **options)
for ids in json.loads(prompts):
    model.reset()
    model.eval(ids)
    made = []
    for _ in range({AGREE}):
        made.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(made[-1:])
    texts.append(made)
print(json.dumps([rows, texts]))
"""


def speed(model: LanguageModel) -> list[tuple[float, float]]:
    """(prefill, decode) tokens per second, several times."""
    ids = np.random.default_rng(0).integers(100, 2000, PROMPT_TOKENS).tolist()
    rows = []
    for _ in range(REPEATS):
        slot = model.slots[0]
        slot.tokens.clear()
        began = time.perf_counter()
        model.prefill(slot, ids)
        read = time.perf_counter()
        for _ in range(DECODED):
            model.decode({0: 5})
        rows.append((PROMPT_TOKENS / (read - began), DECODED / (time.perf_counter() - read)))
    return rows


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


def measure(model: Path, llama: Path | None, place: PlacePolicy = "host") -> dict[str, Any]:
    """Everything above as figures; `llama` is the interpreter of llama.cpp's environment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        began = time.perf_counter()
        language.build(model, path, BuildOptions(partitioning=PartitionOptions(place=place)))
        found: dict[str, Any] = {"build_seconds": round(time.perf_counter() - began, 1)}
        found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        bundle = Bundle.open(path)
        found["perplexity"] = bundle.manifest["quality"]["perplexity"]
        text, loaded = Text(bundle), LanguageModel(bundle, THREADS)
        found["answer"] = "".join(
            text.stream(loaded.generate(text.encode(PROMPTS[0]), 12, Sampling()))
        )
        source, prompts = open_source(model), [text.encode(p) for p in PROMPTS]
        answers = {"bundle": [list(loaded.generate(p, AGREE, Sampling())) for p in prompts]}
        rows = {"bundle": speed(loaded)}
        if llama is not None:
            command = [llama, "-c", _PEER, model, Path(folder) / "q8.gguf", json.dumps(prompts)]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
            rows["llama.cpp Q8_0"], answers["llama.cpp Q8_0"] = json.loads(
                made.stdout.splitlines()[-1]
            )
            rows["bundle again"] = speed(loaded)
    medians = {name: np.median(row, axis=0) for name, row in rows.items()}
    found["tokens_per_second"] = {
        name: np.round(median, 1).tolist() for name, median in medians.items()
    }
    found["agreement"] = {
        name: agreement(prompts, texts, source) for name, texts in answers.items()
    }
    return found


def summary(found: dict[str, Any]) -> str:
    lines = [
        f"build {found['build_seconds']} s, peak memory {found['peak_gb']} GB; "
        f"perplexity {found['perplexity']}",
        f"{PROMPTS[0]!r} -> {found['answer']!r}",
    ]
    for name, same in found["agreement"].items():
        whole = sum(s == AGREE for s in same)
        lines.append(
            f"{name:15} {whole} of {len(same)} with {AGREE} greedy tokens as in float; {same}"
        )
    for name, (prefill, decode) in found["tokens_per_second"].items():
        lines.append(
            f"{name:15} prefill {prefill:8.1f} tokens/s   decode {decode:6.1f} tokens/s   "
            f"(median of {REPEATS})"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama", type=Path, help="python of an environment with llama-cpp-python")
    parser.add_argument("--place", default="host", help="where linear layers go: host, tpu or auto")
    options = parser.parse_args()
    print(summary(measure(options.model, options.llama, options.place)))


if __name__ == "__main__":
    main()
