"""llama.cpp through llama-cpp-python's low-level calls: `llamacpp_worker.py FILE.gguf THREADS`."""

from __future__ import annotations

import ctypes
import struct
import sys
import time

import llama_cpp as llama
import numpy as np
from serve import serve

F16, Q8_0 = 1, 8  # ggml's numbers of these types
ARMS = {"f16 cache": F16, "q8_0 cache": Q8_0}
READ = 512  # tokens read for real before their cache entries are repeated
BATCH = 2048


class LlamaCpp:
    def __init__(self, path: str, threads: str) -> None:
        llama.llama_backend_init()
        how = llama.llama_model_default_params()
        how.n_gpu_layers = 0
        self.model, self.threads = llama.llama_model_load_from_file(path.encode(), how), int(threads)
        self.layers = llama.llama_model_n_layer(self.model)
        self.held: dict[str, ctypes.c_void_p] = {}

    def arms(self, job: str) -> list[str]:
        return {"prefill": ["f16 cache"], "decode": list(ARMS), "keep": []}[job]

    def prefill(self, arm: str, tokens: int) -> float:
        """Seconds of a prompt."""
        context = self._context(arm, tokens)
        seconds = self._read(context, tokens)
        llama.llama_free(context)
        return seconds

    def open(self, arm: str, tokens: int) -> dict[str, float]:
        """A cache of a short prompt whose entries are repeated: a real one of 32k tokens would take many minutes."""
        self.held[arm] = context = self._context(arm, tokens + 64)
        self._read(context, READ)
        size = llama.llama_state_seq_get_size(context, 0)
        state = (ctypes.c_uint8 * size)()
        llama.llama_state_seq_get_data(context, state, size, 0)
        longer = repeated(bytes(state), READ, tokens // READ, self.layers)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        state = (ctypes.c_uint8 * len(longer)).from_buffer_copy(longer)
        if llama.llama_state_seq_set_data(context, state, len(longer), 0) != len(longer):
            raise RuntimeError("llama.cpp refused the repeated state")
        return {"held_bytes": len(longer)}

    def step(self, arm: str) -> float:
        """Seconds of one more token."""
        return self._read(self.held[arm], 1)

    def close(self, arm: str) -> None:
        llama.llama_free(self.held.pop(arm))

    def _context(self, arm: str, tokens: int) -> ctypes.c_void_p:
        how = llama.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = tokens, BATCH, 512, 1
        how.n_threads = how.n_threads_batch = self.threads
        how.flash_attn_type = 1
        how.type_k = how.type_v = ARMS[arm]
        context = llama.llama_init_from_model(self.model, how)
        if not context:
            raise RuntimeError(f"llama.cpp opened no context of {tokens} tokens")
        return context

    def _read(self, context: ctypes.c_void_p, tokens: int) -> float:
        ids = np.random.randint(3, 32_000, tokens)
        start = time.perf_counter()
        for piece in np.split(ids, range(BATCH, tokens, BATCH)):
            tokens_read = (ctypes.c_int32 * len(piece))(*map(int, piece))  # the batch only points to them
            if code := llama.llama_decode(context, llama.llama_batch_get_one(tokens_read, len(piece))):
                raise RuntimeError(f"llama_decode returned {code}")
        llama.llama_synchronize(context)
        return time.perf_counter() - start


def repeated(state: bytes, held: int, times: int, layers: int) -> bytes:
    """llama.cpp's state of one sequence with its entries `times` over, at positions that go on.

    A state is: streams, cells; by cell its position, 1, sequence 0; whether values are transposed, layers; by layer of
    keys, then of values, a type, the bytes of a row, and the rows.
    """
    cell = struct.Struct("<iii")
    start = state.index(struct.pack("<II", 1, held) + cell.pack(0, 1, 0)) + 4
    place = start + 4 + held * cell.size
    transposed, stored = struct.unpack_from("<II", state, place)
    if transposed or stored != layers:
        raise RuntimeError(f"a state of another form: transposed {transposed}, {stored} layers")
    out = [state[:start], struct.pack("<I", held * times), *(cell.pack(i, 1, 0) for i in range(held * times))]
    out.append(state[place : place + 8])
    place += 8
    for _ in range(2 * layers):
        _, row = struct.unpack_from("<iQ", state, place)
        out += [state[place : place + 12], state[place + 12 : place + 12 + row * held] * times]
        place += 12 + row * held
    if place != len(state):
        raise RuntimeError(f"a state of another form: {len(state) - place} bytes left over")
    return b"".join(out)


if __name__ == "__main__":
    serve(LlamaCpp(*sys.argv[1:]))
