"""Qwen3 as a bidirectional encoder: every token attends to all tokens of its text, and to no padding.

The mask is built here from the padding. Only the layers, the norm and the rotary embedding of transformers' Qwen3 are
used, with arguments that are the same from transformers 4.51 to 5.x.
"""

import torch
from transformers import Qwen3Model
from transformers.modeling_outputs import BaseModelOutput

from .configuration_pplx_qwen3 import PPLXQwen3Config


def attention_bias(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the bias of attention scores: mask [B, L], 0 for padding -> [B, 1, 1, L] of `dtype`.

    A row with only padding (an empty text) attends to everything: a softmax over no column is NaN, in half precision
    even with a finite bias, because score + bias overflows. The result of such a row is never pooled.
    """
    visible = attention_mask.bool()
    visible = visible | ~visible.any(dim=-1, keepdim=True)
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill(~visible, torch.finfo(dtype).min)[:, None, None, :]


class PPLXQwen3Model(Qwen3Model):
    """The encoder. Its weights have the keys of Qwen3Model."""

    config_class = PPLXQwen3Config
    _supports_flex_attn = False  # it needs another kind of mask
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # of a model before the contrastive stages

    def __init__(self, config: PPLXQwen3Config):
        super().__init__(config)
        for layer in self.layers:
            layer.self_attn.is_causal = False  # type: ignore[union-attr]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput | tuple:
        """Returns the hidden states after the final norm.

        Args:
          input_ids: [B, L]; or `inputs_embeds` [B, L, D].
          attention_mask: [B, L], 0 for padding; None without padding.
          position_ids: [B, L]; None for 0, 1, ...
          output_hidden_states: whether to also return the states before each layer and after the final norm.
          return_dict: False for a tuple.

        Returns:
          `last_hidden_state` [B, L, D].

        Raises:
          ValueError: both inputs or none are given, the mask is not [B, L], or a text is over the model's limit.
        """
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; give [batch, length]")
        for unused in ("use_cache", "past_key_values", "cache_position", "output_attentions"):
            kwargs.pop(unused, None)
        if input_ids is not None and inputs_embeds is None:
            hidden = self.embed_tokens(input_ids.long())  # the ids of a batch of empty texts are floats
        elif inputs_embeds is not None and input_ids is None:
            hidden = inputs_embeds
        else:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        length, limit = hidden.shape[1], self.config.max_position_embeddings
        if position_ids is None:
            if length > limit:
                raise ValueError(f"a text of {length} tokens; the model takes {limit}: shorten or split it")
            position_ids = torch.arange(length, device=hidden.device)[None]

        flash = "flash" in (self.config._attn_implementation or "")
        mask = attention_mask
        if mask is not None and not flash:
            mask = attention_bias(mask, hidden.dtype)
        if mask is None and self.config._attn_implementation == "sdpa":
            kwargs["is_causal"] = False  # before transformers 4.53, no mask meant a causal one, whatever the layer says
        position_embeddings = self.rotary_emb(hidden, position_ids)
        states = []
        for layer in self.layers if length else ():  # attention kernels refuse a batch without tokens
            states.append(hidden)
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            if isinstance(hidden, tuple):  # before transformers 4.54
                hidden = hidden[0]
        hidden = self.norm(hidden)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BaseModelOutput(hidden, (*states, hidden) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output


# `save_pretrained` then copies this file; before transformers 4.53 it did so only for registered classes.
PPLXQwen3Config.register_for_auto_class("AutoConfig")
PPLXQwen3Model.register_for_auto_class("AutoModel")
