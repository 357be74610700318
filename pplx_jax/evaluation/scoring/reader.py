"""A reader: a language model behind an OpenAI-style address that answers questions from passages."""

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
from pplx_jax.data.io import json_lines as rows

SYSTEM_PROMPT = "You answer questions from the documents you are given, in as few words as possible."
USER_PROMPT = "Documents:\n{passages}\nQuestion: {question}"


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a question is put (naver/bergen, models/generators and config/prompt, has the protocol; the words are ours).

    Attributes:
        url: what OpenAI's clients call the base URL, such as http://localhost:8000/v1. A key is taken from
            OPENAI_API_KEY.
        model: its name there.
        system_prompt, user_prompt: the latter with {passages} and {question}.
        max_tokens: of an answer, decoded greedily.
        passage_words: a passage is cut after so many.
        connections: questions on their way at once.
        retries: of a request that fails in passing.
    """

    url: str
    model: str
    system_prompt: str = SYSTEM_PROMPT
    user_prompt: str = USER_PROMPT
    max_tokens: int = 128
    passage_words: int = 100
    connections: int = 8
    retries: int = 8

    def request(self, question: str, passages: Sequence[str]) -> dict[str, Any]:
        """The body of a chat completion."""
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
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }

    def answers(self, requests: Sequence[dict[str, Any]], kept: pathlib.Path) -> list[str]:
        """Answers all requests; each answer is kept as it comes, and none is asked for twice.

        Args:
            requests: bodies of chat completions.
            kept: JSON lines {"request": 16 hex digits of its hash, "answer"}, added to by later calls.

        Raises:
            BadInput: the model refuses or does not answer; what it has answered is kept.
        """
        names = [hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16] for request in requests]
        known = _read_kept(kept)
        missing = {name: request for name, request in zip(names, requests, strict=True) if name not in known}
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else None
        client = HttpClient(self.url, connections=self.connections, retries=self.retries, headers=headers)
        pool = concurrent.futures.ThreadPoolExecutor(self.connections)
        with (
            Progress("read", len(names), unit="question", start=len(names) - len(missing)) as progress,
            _appending(kept) as file,
        ):
            asked = {pool.submit(self._answer, client, request): name for name, request in missing.items()}

            def keep(done: concurrent.futures.Future[str]) -> None:
                if asked[done] not in known:
                    known[asked[done]] = done.result()
                    file.write(json.dumps({"request": asked[done], "answer": done.result()}, ensure_ascii=False) + "\n")
                    file.flush()

            try:
                for number, done in enumerate(concurrent.futures.as_completed(asked), len(names) - len(missing) + 1):
                    keep(done)
                    progress.update(number)
            finally:
                pool.shutdown(cancel_futures=True)
                for future in asked:  # what was on its way when another failed
                    if not future.cancelled() and not future.exception():
                        keep(future)
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
            error.get("message") if isinstance(error, dict) else error or answer.get("message") or "no answer in it"
        )
        raise BadInput(f"{self.url} does not answer as {self.model} (status {status}: {reason}); mend url or model")


@contextlib.contextmanager
def _appending(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a file of lines to add to, after a last line that a kill may have cut off."""
    cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" if cut else "")
        yield file


def _read_kept(path: pathlib.Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    known = {}
    for _, line in rows.numbered_lines(path):
        try:
            row = rows.parse_object(line)
            known[row["request"]] = row["answer"]
        except (ValueError, KeyError):  # cut off by a kill; it will be asked again
            continue
    return known
