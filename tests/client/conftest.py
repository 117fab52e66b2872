from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_perf.api import Concurrency, Conditions, Endpoint, Load, Run, load_workload, measure
from tests.client.scripted import ScriptedTriton

ONE = Concurrency(1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE without merges: as many tokens as the text has bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(["one two"], trainer)
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str | dict[str, object]) -> Path:
        path = tmp_path / "prompts.jsonl"
        rows = [{"text_input": line} if isinstance(line, str) else line for line in lines]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def ask(write_prompts: Callable[..., Path], tokenizer_folder: Path) -> Callable[..., Run]:
    """Measure these prompts at a server; what else is given are options."""

    def ask(
        server: ScriptedTriton, *prompts: str | dict[str, object], load: Load = ONE, **options
    ) -> Run:
        workload = load_workload(write_prompts(*prompts), tokenizer_folder)
        chosen = Conditions(**{"request_timeout_s": 20.0, **options})
        return measure(Endpoint(server.url, "grpc", "ensemble"), workload, load, chosen)

    return ask


@pytest.fixture
def http_server() -> Callable[..., AbstractContextManager[str]]:
    """Serve GET requests in a thread; gives HOST:PORT."""

    @contextmanager
    def serve(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return serve
