"""A reader: a language model behind an OpenAI-compatible API that answers questions from passages."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from pplx_jax.core.errors import BadInput
from pplx_jax.core.http_client import HttpClient
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.json_lines import numbered_lines, parse_object

SYSTEM_PROMPT = "You answer questions from the documents you are given, in as few words as possible."
USER_PROMPT = "Documents:\n{passages}\nQuestion: {question}"
_OPENAI = "https://api.openai.com/v1"
_UNAUTHORIZED = (401, 403)
_MAX_TOKENS = 128  # of an answer; decoding is greedy


@dataclasses.dataclass(frozen=True)
class Reader:
    """The model and its prompt. The protocol is naver/bergen's (models/generators, config/prompt); the text is ours.

    Attributes:
        url: the base URL of OpenAI clients, such as http://localhost:8000/v1. The key in the environment variable
            OPENAI_API_KEY is sent only if OPENAI_BASE_URL names the same address (by default OpenAI's), because this
            URL may come from a file of a data folder.
        model: its name in the API.
        system_prompt, user_prompt: the latter contains {passages} and {question}.
        passage_words: number of words that a passage is cut to.
        connections: number of concurrent requests.
    """

    url: str
    model: str
    system_prompt: str = SYSTEM_PROMPT
    user_prompt: str = USER_PROMPT
    passage_words: int = 100
    connections: int = 8

    def request(self, question: str, passages: Sequence[str]) -> dict[str, Any]:
        """Returns the body of a chat completion request."""
        cut = (" ".join(passage.split()[: self.passage_words]) for passage in passages)
        listed = "".join(f"Document {number}: {text}\n" for number, text in enumerate(cut, start=1))
        filled = {"{question}": question, "{passages}": listed}
        content = re.sub("|".join(map(re.escape, filled)), lambda found: filled[found.group()], self.user_prompt)
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.system_prompt},
                {"role": "user", "content": content},
            ],
            "max_tokens": _MAX_TOKENS,
            "temperature": 0,
        }

    def answers(self, requests: Sequence[dict[str, Any]], cache: pathlib.Path) -> list[str]:
        """Sends all requests and returns their answers. Answers are cached in a file as they arrive.

        Args:
            requests: bodies of chat completion requests.
            cache: file of JSON lines {"request": 16 hex digits of its hash, "answer"}; later calls append to it.

        Raises:
            BadInput: the model refuses a request or does not answer. Earlier answers stay in the cache.
        """
        names = [hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16] for request in requests]
        known = _read_cache(cache)
        missing = {name: request for name, request in zip(names, requests, strict=True) if name not in known}
        client = HttpClient(self.url, connections=self.connections, headers=_authorization(self.url))
        pool = concurrent.futures.ThreadPoolExecutor(self.connections)
        with (
            Progress("read", len(names), unit="question", start=len(names) - len(missing)) as progress,
            _open_to_append(cache) as file,
        ):
            pending = {pool.submit(self._answer, client, request): name for name, request in missing.items()}

            def cancel_others(done: concurrent.futures.Future[str]) -> None:
                if not done.cancelled() and done.exception():  # at once, in the thread that would send the next one
                    pool.shutdown(wait=False, cancel_futures=True)

            for future in pending:
                future.add_done_callback(cancel_others)

            def store(done: concurrent.futures.Future[str]) -> None:
                name = pending[done]
                if name not in known:
                    known[name] = done.result()
                    file.write(json.dumps({"request": name, "answer": done.result()}, ensure_ascii=False) + "\n")
                    file.flush()

            try:
                for number, done in enumerate(concurrent.futures.as_completed(pending), len(names) - len(missing) + 1):
                    if not done.cancelled():
                        store(done)
                    progress.update(number)
            finally:
                pool.shutdown(cancel_futures=True)
                for future in pending:  # requests that finished after another one failed
                    if not future.cancelled() and not future.exception():
                        store(future)
        return [known[name] for name in names]

    def _answer(self, client: HttpClient, request: dict[str, Any]) -> str:
        status, answer = client.send("POST", "/chat/completions", request)
        try:
            if status == 200:
                return answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            pass
        error = answer.get("error")
        reason = (
            error.get("message")
            if isinstance(error, dict)
            else error or answer.get("message") or "no answer in the response"
        )
        fix = "check reader_url and reader_model"
        if status in _UNAUTHORIZED and not _authorization(self.url):
            fix = f"set OPENAI_API_KEY, and OPENAI_BASE_URL={self.url}: the key is sent to that address only"
        raise BadInput(f"{self.url} does not answer as {self.model} (status {status}: {reason}); {fix}")


def _authorization(url: str) -> dict[str, str] | None:
    """Returns the header with the user's key, if the user's environment says that it belongs to this address."""
    key, own = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL") or _OPENAI
    return {"Authorization": f"Bearer {key}"} if key and url.rstrip("/") == own.rstrip("/") else None


@contextlib.contextmanager
def _open_to_append(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a file of lines for appending. A last line that an interruption cut off is ended first."""
    cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" if cut else "")
        yield file


def _read_cache(path: pathlib.Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    known = {}
    for _, line in numbered_lines(path):
        try:
            row = parse_object(line)
            known[row["request"]] = row["answer"]
        except (ValueError, KeyError):  # cut off by an interruption; it is sent again
            continue
    return known
