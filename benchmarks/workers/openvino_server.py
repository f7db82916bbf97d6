"""OpenVINO GenAI's continuous batching behind the part of OpenAI's API that `benchmarks/serve.py` asks:
`openvino_server.py EXPORTED MODEL PORT THREADS CACHE_GB`. Needs openvino-genai, tokenizers and jinja2.

Requests go into one pipeline, whose steps one thread takes; each answer is streamed a token an event. Tokens and the
template of chats are those of the folder MODEL, as an export may have lost them.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from jinja2 import Environment
from tokenizers import Tokenizer

NAP = 0.002  # seconds between two looks at a pipeline that has nothing to do, and at an answer


class Batching:
    """One pipeline for all requests."""

    def __init__(self, exported: str, model: Path, threads: int, cache_gb: int) -> None:
        told = genai.SchedulerConfig()
        told.cache_size, told.dynamic_split_fuse = cache_gb, True
        how = {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16", "INFERENCE_NUM_THREADS": threads}
        self.pipe = genai.ContinuousBatchingPipeline(exported, told, "CPU", how)
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.template = Environment().from_string((model / "chat_template.jinja").read_text())
        self.asked: queue.Queue[tuple[list[int], int, queue.Queue[Any]]] = queue.Queue()
        self.count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, messages: list[dict[str, str]], new: int) -> queue.Queue[Any]:
        """What is told of an answer: tokens as they come, and None at its end."""
        prompt = self.template.render(messages=messages, add_generation_prompt=True)
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        told: queue.Queue[Any] = queue.Queue()
        self.asked.put((ids, new, told))
        return told

    def _run(self) -> None:
        """Take steps for ever."""
        running: list[tuple[Any, queue.Queue[Any]]] = []
        while True:
            while not self.asked.empty():
                ids, new, told = self.asked.get()
                self.count += 1
                how = genai.GenerationConfig(max_new_tokens=new, do_sample=False)
                running.append((self.pipe.add_request(self.count, ov.Tensor(np.array([ids])), how), told))
            if not running:
                time.sleep(NAP)
                continue
            self.pipe.step()
            running = [one for one in running if self._tell(*one)]

    def _tell(self, handle: Any, told: queue.Queue[Any]) -> bool:
        """Tell what is new of an answer; whether it goes on."""
        while handle.can_read():
            for output in handle.read().values():
                for token in output.generated_ids:
                    told.put(int(token))
        if handle.get_status() == genai.GenerationStatus.RUNNING:
            return True
        told.put(None)
        return False


def handler(batching: Batching) -> type[BaseHTTPRequestHandler]:
    """What answers requests by a pipeline."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told, tokens = batching.ask(body["messages"], body["max_tokens"]), list[int]()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            said = ""
            while (token := told.get()) is not None:
                tokens.append(token)
                text = batching.tokenizer.decode(tokens)
                self._event({"choices": [{"index": 0, "delta": {"content": text[len(said) :]}}]})
                said = text
            self._event({"choices": [], "usage": {"completion_tokens": len(tokens)}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, told: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())
            self.wfile.flush()

    return Handler


def main() -> None:
    """Answer until the process is told to stop."""
    exported, model, port, threads, cache_gb = sys.argv[1:]
    batching = Batching(exported, Path(model), int(threads), int(cache_gb))
    ThreadingHTTPServer(("127.0.0.1", int(port)), handler(batching)).serve_forever()


if __name__ == "__main__":
    main()
