"""A server under concurrent clients: lost and mixed answers, memory, time to the first token.

    python -m benchmarks.serve_load BUNDLE [--clients 16] [--seconds 60]

Each client asks for a greedy continuation of its own prompt again and again, streamed; every answer
must be the one that `generate` gives for that prompt by the server's own program.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.generation import PROMPTS
from benchmarks.serving import COMPLETIONS, serving
from compiler.runtime import Bundle
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
from compiler.runtime.text import Text

TOKENS = 24


def greedy_answers(path: Path, prompts: list[str]) -> list[str]:
    """What `generate` writes behind each prompt."""
    bundle = Bundle.open(path)
    text = Text(bundle)
    model = LanguageModel(bundle, slots=bundle.manifest["language"]["slots"])
    answers = []
    for prompt in prompts:
        tokens = model.generate(text.encode(prompt), TOKENS, Sampling())
        answers.append("".join(text.stream(tokens)))
    return answers


class Client(threading.Thread):
    """Asks for the same continuation again and again, until a time on the monotonic clock."""

    def __init__(self, url: str, prompt: str, wanted: str, until: float) -> None:
        super().__init__()
        self._url = url + COMPLETIONS
        self._body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        self._wanted = wanted
        self._until = until
        self.right = 0
        self.wrong = 0
        self.failed = 0
        self.first_token: list[float] = []  # seconds

    def run(self) -> None:
        with httpx.Client(timeout=120) as client:
            while time.monotonic() < self._until:
                text = self._ask(client)
                self.right += text == self._wanted
                self.wrong += text != self._wanted

    def _ask(self, client: httpx.Client) -> str:
        began = time.monotonic()
        text = ""
        first = float("inf")
        with client.stream("POST", self._url, json=self._body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                first = min(first, time.monotonic() - began)
                choices = json.loads(line.removeprefix("data: ")).get("choices")
                if choices:
                    text += choices[0]["text"]
            self.failed += answer.status_code != 200
        self.first_token.append(first)
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(options.clients)]
    answers = greedy_answers(options.bundle, prompts)
    memory_mb = []
    with serving(options.bundle) as served:
        until = time.monotonic() + options.seconds
        clients = []
        for prompt, answer in zip(prompts, answers, strict=True):
            clients.append(Client(served.url, prompt, answer, until))
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            memory_mb.append(served.resident_mb())
            time.sleep(1)
    show(clients, memory_mb, options.seconds)


def show(clients: list[Client], memory_mb: list[float], seconds: float) -> None:
    right = sum(client.right for client in clients)
    wrong = sum(client.wrong for client in clients)
    failed = sum(client.failed for client in clients)
    print(f"{right + wrong} answers: {right} right, {wrong} wrong, {failed} refused or failed")
    print(f"{right * TOKENS / seconds:.1f} tokens/s in all")
    first = np.concatenate([client.first_token for client in clients])
    print(f"first token: median {np.median(first):.2f} s, p95 {np.percentile(first, 95):.2f} s")
    third = len(memory_mb) // 3
    middle = np.mean(memory_mb[third : 2 * third])
    last = np.mean(memory_mb[-third:])
    print(f"memory: {middle:.0f} MB in the middle third, {last:.0f} in the last")


if __name__ == "__main__":
    main()
