"""Multi-head attention (L2): linear maps into heads, attention, a linear map out of them.

Axes: ``L`` queries, ``S`` keys, ``B`` the batch, ``H`` heads of ``D = E/H``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn.quasilinear.rules._cases import Call, Random, call
from jacfn.quasilinear.rules._registry import expansion


def _cases(rand: Random) -> list[Call]:
    """Self-attention and cross-attention, with all options; ``E = 4``, two heads."""
    x, memory = rand(2, 2, 4), rand(3, 2, 4)
    packed = (4, 2, rand(12, 4), rand(12))
    end = (False, 0.0, rand(4, 4), rand(4))
    separate = {"q_proj_weight": rand(4, 4), "k_proj_weight": rand(4, 3), "v_proj_weight": rand(4, 2)}
    causal = torch.ones(2, 2).triu(1).bool()
    return [
        call(x, x, x, *packed, None, None, *end),
        call(x, x, x, *packed, None, None, *end, need_weights=False, attn_mask=causal),
        call(x, memory, memory, *packed, rand(1, 1, 4), rand(1, 1, 4), True, *end[1:], average_attn_weights=False),
        call(
            *(x, memory, rand(3, 2, 4), *packed, None, None, *end),
            key_padding_mask=rand(2, 3),
            attn_mask=rand(2, 3),
        ),
        call(
            *(rand(2, 4), rand(3, 3), rand(3, 2), 4, 2, None, rand(12), None, None, *end),
            use_separate_proj_weight=True,
            **separate,
        ),
    ]


@expansion(F.multi_head_attention_forward, cases=_cases)
def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """The output, ``(L, B, E)``, and the attention weights or None; NotImplemented for arguments that it refuses."""
    if query.shape[-1] != embed_dim_to_check or (bias_k is None) != (bias_v is None):
        return NotImplemented
    if is_causal and attn_mask is None:
        return NotImplemented
    if use_separate_proj_weight:
        q, k, v = _project_separately(query, key, value, (q_proj_weight, k_proj_weight, v_proj_weight), in_proj_bias)
    else:
        q, k, v = _project(query, key, value, in_proj_weight, in_proj_bias)
    batched = query.ndim == 3
    if not batched:
        q, k, v = (x.unsqueeze(1) for x in (q, k, v))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    k = _as_heads(_with_row(k, bias_k), num_heads) if static_k is None else _split_batch(static_k, num_heads)
    v = _as_heads(_with_row(v, bias_v), num_heads) if static_v is None else _split_batch(static_v, num_heads)
    if add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    hint = is_causal and key_padding_mask is None and not need_weights  # then it stands for the mask
    added = (bias_k is not None) + add_zero_attn
    mask = _mask(None if hint else attn_mask, key_padding_mask, num_heads, added, q.dtype)
    dropout_p = dropout_p if training else 0.0

    weights = None
    heads = _as_heads(q, num_heads)
    if need_weights:
        weights = _weights(heads, k, mask, dropout_p)
        attended = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        attended = F.scaled_dot_product_attention(heads, k, v, mask, dropout_p, hint)
    # (L, B, E) <- (B, H, L, D)
    output = F.linear(attended.permute(2, 0, 1, 3).reshape(q.shape), out_proj_weight, out_proj_bias)
    if batched:
        return output, weights
    return output.squeeze(1), None if weights is None else weights.squeeze(0)


def _project(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """One product for each different input, with the rows of the packed weight that are meant for it."""
    assert weight is not None
    if q is k and k is v:
        return F.linear(q, weight, bias).chunk(3, -1)
    if k is v:
        width = q.shape[-1]
        query_bias, other_bias = (None, None) if bias is None else torch.split(bias, [width, 2 * width])
        query_weight, other_weight = torch.split(weight, [width, 2 * width])
        return (F.linear(q, query_weight, query_bias), *F.linear(k, other_weight, other_bias).chunk(2, -1))
    return _project_separately(q, k, v, weight.chunk(3), bias)


def _project_separately(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor | None], bias: Tensor | None
) -> tuple[Tensor, ...]:
    biases = (None, None, None) if bias is None else bias.chunk(3)
    parts = zip((q, k, v), weights, biases, strict=True)
    return tuple(F.linear(x, weight, shift) for x, weight, shift in parts if weight is not None)


def _with_row(x: Tensor, row: Tensor | None) -> Tensor:
    """``(S + 1, B, E)`` from ``(S, B, E)`` and a row ``(1, 1, E)`` for all of the batch, as a shift of zeros."""
    return x if row is None else torch.cat([x, torch.zeros_like(x[:1]) + row])


def _as_heads(x: Tensor, heads: int) -> Tensor:
    """``(B, H, S, D)`` from ``(S, B, E)``."""
    length, batch, width = x.shape
    return x.reshape(length, batch, heads, width // heads).permute(1, 2, 0, 3)


def _split_batch(x: Tensor, heads: int) -> Tensor:
    """``(B, H, ...)`` from ``(B·H, ...)``."""
    return x.reshape(-1, heads, *x.shape[1:])


def _mask(
    attention: Tensor | None, padding: Tensor | None, heads: int, added: int, dtype: torch.dtype
) -> Tensor | None:
    """What is added to the scores ``(B, H, L, S)``; nothing for the keys that were added at the end."""
    terms = []
    if attention is not None:  # (L, S) or (B·H, L, S)
        mask = _additive(attention, dtype)
        terms.append(mask if mask.ndim == 2 else _split_batch(mask, heads))
    if padding is not None:  # (B, S)
        terms.append(_additive(padding, dtype)[:, None, None])
    return F.pad(sum(terms[1:], terms[0]), (0, added)) if terms else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of booleans says what to leave out; one of numbers is added as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """``(B, H, L, S)``: attention by its definition, where the weights themselves are asked for."""
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = F.softmax(scores if mask is None else scores + mask, -1)
    return F.dropout(weights, dropout_p) if dropout_p > 0 else weights
