"""The context model: one embedding per chunk, computed in the context of the whole document."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from .configuration_pplx_qwen3 import PPLXQwen3Config
from .modeling_pplx_qwen3 import PPLXQwen3Model
from .st_quantize import quantize


class PPLXQwen3ContextualModel(PPLXQwen3Model):
    """The encoder with late chunking (arXiv 2602.11151, section 2.4)."""

    config_class = PPLXQwen3Config

    @torch.inference_mode()
    def encode(
        self,
        documents: Sequence[Sequence[str]],
        quantization: str = "int8",
        dims: int | None = None,
        batch_size: int = 8,
        prompt_name: str | None = None,
    ) -> list[np.ndarray]:
        """Embeds chunks in the context of their document.

        Chunks are joined by the separator token and encoded in one pass. The embedding of a chunk is the mean over its
        tokens. A query is a document of one chunk. A chunk that contains the separator's name stays one chunk.

        Args:
          documents: each a list of chunks in order.
          quantization: "int8", "binary", "ubinary", "tanh" or "none".
          dims: number of leading dimensions, for models trained with MRL.
          batch_size: documents per forward pass.
          prompt_name: "query", "document" or another name in the model's prompts: the text before the first chunk of
            each document. None for no prompt.

        Returns:
          An array [chunks, dims] for each document; an empty chunk gives the embedding of a zero vector.

        Raises:
          TypeError: a document is a str instead of a list of chunks.
          ValueError: a document is over the model's limit (the message has its index), or there is no such prompt.
        """
        for place, document in enumerate(documents):
            if isinstance(document, str):
                raise TypeError(f"document {place} is a str; give a list of chunks")
        if not documents:
            return []
        if prompt_name is not None:
            documents = self._prompted(documents, prompt_name)
        was_training = self.training
        self.eval()
        try:
            tokens, chunk_ids = zip(*map(self._tokenize, documents), strict=True)
            for place, ids in enumerate(tokens):
                if len(ids) > self.config.max_position_embeddings:
                    raise ValueError(
                        f"document {place} has {len(ids)} tokens, the model takes "
                        f"{self.config.max_position_embeddings}: shorten or split it"
                    )
            # Documents of similar length share a batch, to reduce padding.
            order = sorted(range(len(documents)), key=lambda place: len(tokens[place]))
            embeddings: list[np.ndarray] = [np.empty(0)] * len(documents)
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                hidden = self._hidden([tokens[place] for place in places])
                for row, place in enumerate(places):
                    members = torch.tensor(chunk_ids[place], device=hidden.device)
                    pooled = _mean_by_chunk(hidden[row, : len(members)], members, len(documents[place]))
                    embeddings[place] = quantize(pooled, quantization, dims).cpu().numpy()
            return embeddings
        finally:
            self.train(was_training)

    def _prompted(self, documents: Sequence[Sequence[str]], name: str) -> list[list[str]]:
        prompts = {"query": "", "document": "", **getattr(self.config, "prompts", {})}
        if name not in prompts:
            raise ValueError(f"prompt_name={name!r} is not one of {', '.join(prompts)}")
        first = lambda chunks: [prompts[name] + text if text.strip() else text for text in chunks[:1]]  # noqa: E731
        return [[*first(chunks), *chunks[1:]] for chunks in documents]

    def _tokenize(self, chunks: Sequence[str]) -> tuple[list[int], list[int]]:
        """Returns the token ids of a document, and the index of each token's chunk (-1 for separators)."""
        tokens, chunk_ids = [], []
        for place, chunk in enumerate(chunks):
            if place:
                tokens.append(self._tokenizer.sep_token_id)
                chunk_ids.append(-1)
            ids = self._tokenizer(chunk, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            tokens += ids
            chunk_ids += [place] * len(ids)
        return tokens, chunk_ids

    @property
    def _tokenizer(self):
        if "_loaded_tokenizer" not in self.__dict__:
            folder = self.config._name_or_path
            self.__dict__["_loaded_tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder)
        return self.__dict__["_loaded_tokenizer"]

    def _hidden(self, rows: list[list[int]]) -> torch.Tensor:
        length = max(map(len, rows))
        padded = [ids + [self._tokenizer.pad_token_id] * (length - len(ids)) for ids in rows]
        mask = [[1] * len(ids) + [0] * (length - len(ids)) for ids in rows]
        input_ids = torch.tensor(padded, dtype=torch.long, device=self.device)
        return self(input_ids, torch.tensor(mask, dtype=torch.long, device=self.device)).last_hidden_state


def _mean_by_chunk(hidden: torch.Tensor, chunk_ids: torch.Tensor, chunks: int) -> torch.Tensor:
    """Returns means [chunks, D] float32 of hidden [L, D] by chunk id; zero for a chunk without tokens."""
    member = (chunk_ids[None] == torch.arange(chunks, device=hidden.device)[:, None]).float()
    return (member @ hidden.float()) / member.sum(-1, keepdim=True).clamp(min=1)


PPLXQwen3ContextualModel.register_for_auto_class("AutoModel")
