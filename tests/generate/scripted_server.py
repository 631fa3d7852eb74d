"""A small real HTTP server that speaks the completions protocol, and breaks it in the ways that servers do."""

import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROBE = "Once there was a"
FEATURES = {"n", "stop", "logprobs", "seed", "temperature", "max_tokens", "token_prompts", "top_k"}


class ScriptedServer(ThreadingHTTPServer):
    """Writes letters that depend on the prompt and the seed alone; one letter is one token.

    Args:
        tokenizer: of the prompts that come as token ids.
        ignores: parts of a request that get no attention.
        stop: what happens to a stop string: ``cut``, ``kept``.
        faults: for each request in turn that is not of a probe: a function of the handler and the body that answers in
            its place (and returns True), or None.
        models: what it lists.
        most: requests at a time; more get 429.
        fixed: sample every request at the temperature of the first one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, tokenizer, *, ignores=(), stop="cut", faults=(), models=({"id": "tiny"},), most=None, port=0, fixed=False
    ):
        self.tokenizer = tokenizer
        self.takes = FEATURES - set(ignores)
        self.stop_is, self.faults, self.models, self.most = stop, deque(faults), list(models), most
        self.fixed, self.first = fixed, None
        self.bodies, self.times, self.keys, self.texts = [], [], Counter(), 0
        self.connections = []
        self.now = self.peak = 0
        self.lock, self.released = threading.Lock(), threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        """Go as a killed process does: with the listening socket and every connection."""
        self.shutdown()
        self.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.released.set()

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests

    def write(self, prompt, body, index):
        """The text, before any limit."""
        source = [prompt]
        with self.lock:
            self.first = body["temperature"] if self.first is None else self.first
        likeliest = body.get("top_k") == 1 and "top_k" in self.takes
        if (self.first if self.fixed else body["temperature"]) != 0 and "temperature" in self.takes and not likeliest:
            with self.lock:
                self.texts += 1
                source += [body["seed"] if "seed" in self.takes and "seed" in body else self.texts, index]
        letters = random.Random(str(source))
        return "".join(letters.choice("abcdefg ") for _ in range(letters.randint(25, 40)))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections.append(self.connection)

    def log_message(self, *arguments):
        pass

    def answer(self, status, value, **headers):
        """Send JSON, or text as it is."""
        raw = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"content-type": "application/json", "content-length": len(raw), **headers}
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), str(content))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": self.server.models})
        else:
            self.answer(404, {"error": "no such page"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        if isinstance(prompt, list):
            if "token_prompts" not in server.takes:
                return self.answer(400, {"error": {"message": "prompt must be a string"}})
            prompt = server.tokenizer.decode(prompt)
        if prompt == PROBE:
            return self.reply(prompt, body)
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.keys[self.headers["authorization"]] += 1
            fault = server.faults.popleft() if server.faults else None
            server.now += 1
            server.peak = max(server.peak, server.now)
            crowded = server.most is not None and server.now > server.most
        try:
            if crowded:
                time.sleep(0.01)
                return self.answer(429, {"error": {"message": "too many requests"}})
            if server.most is not None:
                time.sleep(0.01)
            if fault is not None and fault(self, body):
                return None
            return self.reply(prompt, body)
        finally:
            with server.lock:
                server.now -= 1

    def reply(self, prompt, body):
        takes = self.server.takes
        limit = body["max_tokens"] if "max_tokens" in takes else 10**6
        choices, written = [], 0
        for index in range(body.get("n", 1) if "n" in takes else 1):
            text, reason = self.server.write(prompt, body, index), "stop"
            if len(text) >= limit:
                text, reason = text[:limit], "length"
            written += len(text) + (reason == "stop")  # with the end token
            cuts = [at for stop in body.get("stop", ()) if (at := text.find(stop)) >= 0]
            if cuts and "stop" in takes:
                written += min(cuts) + 1 - len(text) - (reason == "stop")  # with the stop string's token
                text, reason = text[: min(cuts) + (self.server.stop_is == "kept")], "stop"
            choice = {"index": index, "finish_reason": reason}
            if "messages" in body:
                choice["message"] = {"role": "assistant", "content": text}
            else:
                choice["text"] = text
            if "logprobs" in body and "logprobs" in takes:
                choice["logprobs"] = {"tokens": list(text), "token_logprobs": [-0.5] * (len(text) - 1) + [-1.5]}
            choices.append(choice)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": written}
        self.answer(200, {"model": body["model"], "choices": choices, "usage": usage})


def status(code, message="no", **headers):
    """A fault: this status."""
    return lambda handler, body: handler.answer(code, {"error": {"message": message}}, **headers) or True


def says(value):
    """A fault: this JSON, or text, with status 200."""
    return lambda handler, body: handler.answer(200, value) or True


def hang(handler, body):
    """A fault: no answer until the server is closed."""
    handler.server.released.wait(60)
    handler.close_connection = True
    return True


def half(handler, body):
    """A fault: a connection that ends within the answer."""
    handler.wfile.write(
        b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"choices": ['
    )
    handler.wfile.flush()
    handler.close_connection = True
    return True


def dropped(handler, body):
    """A fault: a connection that ends before the answer."""
    handler.close_connection = True
    return True
