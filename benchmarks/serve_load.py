"""A server under concurrent clients: lost and mixed answers, memory, time to the first token.

    python -m benchmarks.serve_load BUNDLE [--clients 16] [--seconds 60]

Each client asks for a greedy continuation of its own prompt again and again, streamed; every answer
must be the one that `generate` gives for that prompt by the server's own program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.generation import PROMPTS
from compiler.runtime import Bundle
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
from compiler.runtime.text import Text
from tests.soak import resident_mb

TOKENS = 24


def wanted(path: Path, prompts: list[str]) -> list[str]:
    bundle = Bundle.open(path)
    model, text = LanguageModel(bundle, slots=bundle.manifest["language"]["slots"]), Text(bundle)
    return [
        "".join(text.stream(model.generate(text.encode(p), TOKENS, Sampling()))) for p in prompts
    ]


class Client(threading.Thread):
    def __init__(self, url: str, prompt: str, want: str, until: float) -> None:
        super().__init__()
        self.url, self.prompt, self.want, self.until = url, prompt, want, until
        self.right = self.wrong = self.failed = 0
        self.first: list[float] = []

    def run(self) -> None:
        body = {"prompt": self.prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        with httpx.Client(timeout=120) as client:
            while time.monotonic() < self.until:
                began, text, first = time.monotonic(), "", None
                with client.stream("POST", f"{self.url}/v1/completions", json=body) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            first = first or time.monotonic() - began
                            choices = json.loads(line[6:]).get("choices")
                            text += choices[0]["text"] if choices else ""
                    self.failed += answer.status_code != 200
                self.right += text == self.want
                self.wrong += text != self.want
                self.first.append(first or float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.clients)]
    answers = wanted(options.bundle, prompts)
    command = [sys.executable, "-m", "compiler", "serve", str(options.bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split(" on ")[1].split()[0]
        until = time.monotonic() + options.seconds
        clients = [Client(url, p, a, until) for p, a in zip(prompts, answers, strict=True)]
        for client in clients:
            client.start()
        used = []
        while any(c.is_alive() for c in clients):
            used.append(resident_mb(process.pid))
            time.sleep(1)
        process.terminate()
    first = np.concatenate([c.first for c in clients])
    right = sum(client.right for client in clients)
    wrong = sum(client.wrong for client in clients)
    failed = sum(client.failed for client in clients)
    print(f"{right + wrong} answers: {right} right, {wrong} wrong, {failed} refused or failed")
    print(f"{right * TOKENS / options.seconds:.1f} tokens/s in all")
    print(f"first token: median {np.median(first):.2f} s, p95 {np.percentile(first, 95):.2f} s")
    third = len(used) // 3
    middle, last = np.mean(used[third : 2 * third]), np.mean(used[-third:])
    print(f"memory: {middle:.0f} MB in the middle third, {last:.0f} in the last")


if __name__ == "__main__":
    main()
