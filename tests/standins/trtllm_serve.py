"""A stand-in for ``trtllm-serve``: the OpenAI server of TensorRT-LLM, without an engine.

It holds its caller to the real contract: only flags that the command of the release has, a folder
with a checkpoint, a file with options that its class has, and request fields that its protocol has
(the real ones refuse others). It is ready once it has started, calls the model as the folder is
called, streams a token at a time, tells iterations once (``/metrics`` is drained by reading) where
``enable_iter_perf_stats`` asks for them, and Prometheus' page where ``return_perf_metrics`` does.
What it was given is in ``$TRT_STANDIN/started0.json``, and the requests in ``requests.jsonl``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import yaml

HERE = Path(os.environ["TRT_STANDIN"])
RELEASES = Path(__file__).parents[2] / "deploy/trtllm_deploy/releases"
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
# CompletionRequest of serve/openai_protocol.py, as far as a client here may know it
FIELDS = {
    *("model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs"),
    *("max_tokens", "n", "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix"),
    *("temperature", "top_p", "user", "use_beam_search", "top_k", "top_p_min", "min_p"),
    *("repetition_penalty", "length_penalty", "early_stopping", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "min_tokens", "skip_special_tokens", "detokenize"),
    *("spaces_between_special_tokens", "truncate_prompt_tokens", "add_special_tokens"),
}
RECORDS: list[dict[str, Any]] = []
LOCK = threading.Lock()
COUNTS = {"requests": 0, "running": 0, "tokens": 0}


def refuse(what: str) -> NoReturn:
    print(f"Usage: trtllm-serve [OPTIONS] MODEL\n\nError: {what}", file=sys.stderr)
    sys.exit(2)


def taken() -> dict[str, Any]:
    release = os.environ["TRT_STANDIN_RELEASE"]
    told: dict[str, Any] = yaml.safe_load((RELEASES / f"{release}.yaml").read_text())["serve"]
    return told


def parse(words: list[str]) -> dict[str, str]:
    known = taken()["flags"].split()
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name = word.removeprefix("--")
        if word.startswith("--") and name not in known:
            refuse(f"No such option: {word}")
        if word.startswith("--"):
            given[name] = next(rest)
        elif "model" in given:
            refuse(f"Got unexpected extra argument ({word})")
        else:
            given["model"] = word
    return given


def check(options: dict[str, Any]) -> None:
    """As pydantic refuses them (extra=forbid), those inside others too."""
    groups = taken()["options"]
    for name, value in options.items():
        if name not in groups[""].split():
            refuse(f"{name}\n  Extra inputs are not permitted [type=extra_forbidden]")
        if name in groups and isinstance(value, dict):
            for key in value.keys() - set(groups[name].split()):
                refuse(f"{name}.{key}\n  Extra inputs are not permitted [type=extra_forbidden]")
    built = options.get("build_config")
    if options.get("max_num_tokens", 0) > (built or {}).get("max_num_tokens", 8192) and (
        "build_config" in groups[""].split()
    ):
        refuse("max_num_tokens is greater than build_config.max_num_tokens")


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""
    options: dict[str, Any] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path == "/health":
            self.say(b"")
        elif self.path == "/v1/models":
            self.say(json.dumps({"object": "list", "data": [{"id": self.model}]}).encode())
        elif self.path == "/metrics":
            with LOCK:
                told, RECORDS[:] = list(RECORDS), []
            self.say(json.dumps(told).encode())
        elif self.path == "/prometheus/metrics" and self.options.get("return_perf_metrics"):
            page = "# TYPE trtllm_request_success_total counter\n"
            page += f'trtllm_request_success_total{{model_name="m"}} {COUNTS["requests"]}\n'
            page += "# TYPE trtllm_kv_cache_utilization gauge\ntrtllm_kv_cache_utilization 0.25\n"
            self.say(page.encode(), "text/plain")
        else:
            self.say(b"{}", status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK, (HERE / "requests.jsonl").open("a") as stream:
            stream.write(json.dumps(body) + "\n")
        unknown = body.keys() - FIELDS
        if self.path != "/v1/completions" or unknown:
            what = [{"type": "extra_forbidden", "loc": ["body", each]} for each in sorted(unknown)]
            self.say(json.dumps({"detail": what}).encode(), status=400 if unknown else 404)
            return
        osl = body.get("max_tokens") or 16
        with LOCK:
            COUNTS["running"] += 1
        texts = [f" {WORDS[at % len(WORDS)]}" for at in range(osl)]
        used = {"prompt_tokens": len(str(body["prompt"]).split()), "completion_tokens": osl}
        used["total_tokens"] = sum(used.values())
        base = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": self.model}
        if not body.get("stream"):
            end = {"index": 0, "text": "".join(texts), "finish_reason": "length"}
            self.record()
            self.say(json.dumps({**base, "choices": [end], "usage": used}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at, text in enumerate(texts):
            end = "length" if at == osl - 1 else None
            self.event({**base, "choices": [{"index": 0, "text": text, "finish_reason": end}]})
            self.record()
            time.sleep(0.002)
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event({**base, "choices": [], "usage": used})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")
        with LOCK:
            COUNTS["running"] -= 1
            COUNTS["requests"] += 1

    def record(self) -> None:
        if self.options.get("enable_iter_perf_stats"):
            batch = {"numScheduledRequests": COUNTS["running"], "numContextRequests": 0}
            batch |= {"numGenRequests": COUNTS["running"], "numCtxTokens": 0}
            cache = {"freeNumBlocks": 90, "maxNumBlocks": 100, "usedNumBlocks": 10}
            told = {"numActiveRequests": COUNTS["running"], "numQueuedRequests": 1}
            with LOCK:
                RECORDS.append(
                    {**told, "iter": 1, "kvCacheStats": cache, "inflightBatchingStats": batch}
                )

    def event(self, what: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(what)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def say(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    given = parse(sys.argv[1:])
    folder = Path(given["model"])
    if not (folder / "config.json").is_file():
        refuse(f"there is no checkpoint {folder}")
    Answers.options = yaml.safe_load(Path(given["extra_llm_api_options"]).read_text())
    check(Answers.options)
    Answers.model = folder.name
    started = {"flags": given, "options": Answers.options, "pid": os.getpid()}
    (HERE / "started0.json").write_text(json.dumps(started))
    server = ThreadingHTTPServer((given["host"], int(given["port"])), Answers)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
