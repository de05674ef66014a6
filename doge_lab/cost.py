"""What a model costs, known exactly before any training: counted on the meta device, where tensors have no data."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from doge_lab.block import Block, SequenceBlock, numbers_held
from doge_lab.cache import nbytes
from doge_lab.errors import UserError
from doge_lab.model import CausalLM, ModelConfig


@dataclass(frozen=True)
class BlockCost:
    """The share of one block. `cache_bytes` is 0 for a state block."""

    type: str
    params: int
    active_params: int
    flops_per_token: int
    cache_bytes: int


@dataclass(frozen=True)
class LayerCost:
    sequence: BlockCost
    state: BlockCost


@dataclass(frozen=True)
class Cost:
    """A whole model at one context length.

    params: all parameters and buffers, the embedding included.
    embedding_params: the looked-up tables among them (tokens and learned positions).
    active_params: parameters one token touches: without looked-up rows, with the head, tied or not.
    flops_per_token: matrix products of one decoding step that sees `context` tokens; a multiply-add is 2.
    cache_bytes: one row of the batch, allocated for exactly `context` tokens, per-token entries in `cache_dtype`.
    """

    params: int
    embedding_params: int
    active_params: int
    flops_per_token: int
    cache_bytes: int
    context: int
    cache_dtype: str
    layers: tuple[LayerCost, ...]

    def dump(self) -> dict[str, Any]:
        return asdict(self)


def cost_of(config: ModelConfig, context: int) -> Cost:
    """Count the model declared by `config`. Raises `UserError` for a combination that cannot be built."""
    try:
        return _counted(config, context)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a third party's block may raise anything
        raise UserError(f"a block cannot be built or counted: {type(error).__name__}: {error}") from error


def _counted(config: ModelConfig, context: int) -> Cost:
    with torch.device("meta"):
        model = CausalLM(config)
    return declared_by(model, context)


def declared_by(model: CausalLM, context: int) -> Cost:
    """What a model says of itself, wherever it lies and whatever it has learned: always the same."""
    config = model.config
    dtype = getattr(torch, config.cache_dtype)
    names = [ref.type for _, entry in config.expanded() for ref in (entry.sequence, entry.state)]
    costs = [_block_cost(block, name, context, dtype) for block, name in zip(model.blocks(), names, strict=True)]
    layers = tuple(LayerCost(*pair) for pair in zip(costs[::2], costs[1::2], strict=True))
    params = numbers_held(model)
    embeddings = [table for table in (model.embed, model.positions) if table is not None]
    embedding_params = sum(table.weight.numel() for table in embeddings)
    head = model.embed.weight.numel()
    in_blocks = sum(cost.params for cost in costs)
    norms = params - embedding_params - in_blocks - (0 if config.tie_embeddings else head)
    return Cost(
        params=params,
        embedding_params=embedding_params,
        active_params=sum(cost.active_params for cost in costs) + norms + head,
        flops_per_token=sum(cost.flops_per_token for cost in costs) + 2 * head,
        cache_bytes=sum(cost.cache_bytes for cost in costs),
        context=context,
        cache_dtype=config.cache_dtype,
        layers=layers,
    )


def _block_cost(block: Block, name: str, context: int, dtype: torch.dtype) -> BlockCost:
    return BlockCost(
        type=name,
        params=block.num_params(),
        active_params=block.active_params(),
        flops_per_token=block.flops_per_token(context),
        cache_bytes=nbytes(block.cache_spec(), context, dtype) if isinstance(block, SequenceBlock) else 0,
    )


def held_cache_bytes(model: CausalLM, context: int) -> int:
    """Decode `context` random tokens and weigh the cache that `model` holds then, one row, in bytes."""
    cache = model.init_cache(batch=1, capacity=context)
    tokens = torch.randint(model.config.vocab_size or 1, (1, context), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(model.embed.weight.device)
    prefill = max(1, context - 8)
    with torch.inference_mode():
        for chunk in (tokens[:, :prefill], *tokens[:, prefill:].split(1, dim=1)):
            if chunk.shape[1]:
                model(chunk, cache=cache)
    return cache.nbytes()
