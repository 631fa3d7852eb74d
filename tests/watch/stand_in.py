"""What vLLM does with its weights, as far as a watcher sees it: a real model behind the routes of its server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dftune.data.tokenizer import train_tokenizer
from dftune.generate.base import Request, Sampling
from dftune.generate.load import load_engine
from dftune.watch.engine import put_weights
from dftune.watch.weights import next_logps

_SIZES = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3},
}


def save_random(folder, seed, *, beside=None, by=0.0):
    """A random model with its tokenizer; ``beside`` another one, whose weights are scaled by 1 + ``by``."""
    tokenizer = train_tokenizer((), 260)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **_SIZES))
    if beside is not None:
        model = Qwen2ForCausalLM.from_pretrained(beside)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(1 + by)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class StandIn(ThreadingHTTPServer):
    """Greedy completions, and the likeliest tokens, of a model.

    Args:
        folder: of the model that it starts with.
        ignores: new weights are accepted with status 200, and not taken on.
        dev_mode: whether weights can be changed at all.
        device: that it says it computes on.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder, *, ignores=False, dev_mode=True, device="cuda"):
        self.folder, self.ignores, self.dev_mode, self.device = str(folder), ignores, dev_mode, device
        self.engine = load_engine(folder, device="cpu")
        self.paths, self.others, self.lock = [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path, body):
        """Status and JSON."""
        if path == "/v1/models":
            return 200, {"data": [{"id": self.folder, "object": "model", "owned_by": "vllm", "max_model_len": 256}]}
        if path == "/v1/completions":
            prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
            found = [self.choice(index, prompt, body) for index, prompt in enumerate(prompts)]
            usage = {"prompt_tokens": len(prompts[0]), "completion_tokens": sum(num_tokens for _, num_tokens in found)}
            return 200, {"choices": [choice for choice, _ in found], "usage": usage}
        if not self.dev_mode:
            return 404, {"detail": "Not Found"}
        if path == "/server_info":
            return 200, {"vllm_config": f"dtype=torch.float32, device_config={self.device}"}
        if path == "/collective_rpc":
            self.paths.append(Path(body["kwargs"]["weights_path"]))
            assert body["method"] == "reload_weights"
            taken = self.ignores or put_weights(self.engine.model, self.paths[-1])
            return (200, {"results": [None]}) if taken else (500, {"error": {"message": "shapes differ"}})
        self.others.append(path)
        return 200, {}

    def choice(self, index, prompt, body):
        """One completion, and the number of its tokens."""
        prompt = self.engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ends = self.engine.end_token_ids | set(body.get("stop_token_ids", ()))
        sampling = Sampling(body["max_tokens"], stop=tuple(body.get("stop", ())), end_token_ids=ends)
        (done,) = self.engine.generate([Request("", tuple(prompt))], sampling)
        found = {"index": index, "text": done.text, "finish_reason": done.finish_reason, "stop_reason": None}
        if body.get("return_tokens_as_token_ids"):
            values, tokens = (one.tolist() for one in next_logps(self.engine, [prompt])[0].topk(body["logprobs"]))
            likeliest = {f"token_id:{token}": value for token, value in zip(tokens, values, strict=True)}
            found["logprobs"] = {"top_logprobs": [likeliest]}
        return found, done.num_tokens


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self):
        self.reply(None)

    def do_POST(self):
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body):
        with self.server.lock:
            status, value = self.server.answer(self.path, body)
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format, *args):
        pass
