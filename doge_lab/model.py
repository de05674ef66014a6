"""A causal language model assembled from blocks.

    x = embed(tokens)
    for each layer:  x = x + a ⊙ sequence(norm(x));  x = x + b ⊙ state(norm(x))        a, b learned or 1
    logits = head(norm(x))

There are no absolute positions unless asked for: rotary and the like belong to blocks.

Shape letters: B batch row, T new token, D d_model, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, PositiveInt, WithJsonSchema, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab import registry
from doge_lab.block import Block, BlockConfig, Kind, RouterStats, SequenceBlock, StateBlock
from doge_lab.cache import Cache
from doge_lab.determinism import seed_torch
from doge_lab.errors import UserError, shortened
from doge_lab.layers.masks import token_positions
from doge_lab.layers.norm import RMSNorm
from doge_lab.strict import Strict, validate

LARGEST = 2**24
"""Of a width or a vocabulary: beyond what anyone builds, below what overflows."""
MOST_LAYERS = 2000


@dataclass(frozen=True)
class BlockRef:
    """A block chosen by name, with its validated options."""

    kind: Kind
    type: str
    options: BlockConfig

    @classmethod
    def parse(cls, kind: Kind, value: Any) -> "BlockRef":
        """Read `attention` or `{type: attention, n_heads: 2}`."""
        if isinstance(value, BlockRef):
            return value
        written = {"type": value} if isinstance(value, str) else value
        if not isinstance(written, dict) or not isinstance(written.get("type"), str):
            raise UserError(f"a {kind} block is a name or a mapping with `type`, not {shortened(value)}")
        try:
            block = registry.get(kind, written["type"])
        except UserError as error:
            raise error.under("type") from None
        options = {name: option for name, option in written.items() if name != "type"}
        return cls(kind, written["type"], validate(block.Config, options))

    def dump(self) -> dict[str, Any]:
        return {"type": self.type, **self.options.model_dump(mode="json")}

    def build(self, d_model: int, *, layer_idx: int, n_layers: int) -> Block:
        options = self.options.model_dump()
        return registry.get(self.kind, self.type)(d_model, layer_idx=layer_idx, n_layers=n_layers, **options)


def _field(kind: Kind) -> Any:
    """The type of a field that holds a block; `x-block` marks the place for `doge_lab.schema`."""
    return Annotated[
        BlockRef,
        BeforeValidator(partial(BlockRef.parse, kind)),
        PlainSerializer(BlockRef.dump),
        WithJsonSchema({"x-block": kind}),
    ]


class LayerConfig(Strict):
    """One entry of the pattern: a sequence block, then a state block, `repeat` times."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    repeat: int = Field(default=1, ge=1, le=1000)
    """How many layers in a row look like this."""
    sequence: _field("sequence")  # type: ignore[valid-type]
    """The block that moves information between tokens."""
    state: _field("state")  # type: ignore[valid-type]
    """The block that transforms each token."""


class ModelConfig(Strict):
    """A causal language model, declared."""

    vocab_size: int | None = Field(default=None, ge=1, le=LARGEST)
    """Tokens in the vocabulary; comes from the tasks, and may be written larger."""
    d_model: int = Field(ge=1, le=LARGEST)
    """Width of the stream that blocks read and write."""
    layers: tuple[LayerConfig, ...] = Field(min_length=1)
    """The pattern, first layer first."""
    tie_embeddings: bool = True
    """Use the embedding as the output head."""
    positions: Literal["none", "learned"] = "none"
    """Absolute position embeddings added to the input."""
    max_positions: PositiveInt = 2048
    """Rows of the learned position table."""
    residual: Literal["plain", "scaled"] = "plain"
    """`scaled` multiplies each block's output by learned per-channel weights (the later Doge release)."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type in which per-token cache entries are held and counted."""

    @model_validator(mode="after")
    def _not_endless(self) -> "ModelConfig":
        if self.n_layers > MOST_LAYERS:
            raise UserError(f"makes {self.n_layers:,} layers; at most {MOST_LAYERS:,}", "layers")
        return self

    @property
    def n_layers(self) -> int:
        return sum(layer.repeat for layer in self.layers)

    def expanded(self) -> Iterator[tuple[str, LayerConfig]]:
        """Every layer with the path of the pattern entry it comes from."""
        for index, layer in enumerate(self.layers):
            for _ in range(layer.repeat):
                yield f"layers.{index}", layer


class Layer(nn.Module):
    """A sequence block and a state block, each behind a norm and around a residual; `none` is left out."""

    def __init__(self, config: LayerConfig, *, d_model: int, scaled: bool, layer_idx: int, n_layers: int) -> None:
        super().__init__()
        place = {"layer_idx": layer_idx, "n_layers": n_layers}
        self.sequence: SequenceBlock = _build(config.sequence, d_model, **place)
        self.state: StateBlock = _build(config.state, d_model, **place)
        self.norms = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        for block in (self.sequence, self.state):
            if not block.is_none:
                self.norms[block.kind] = RMSNorm(d_model, eps=1e-6)
                if scaled:
                    self.scales[block.kind] = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        self.sequence.reset_parameters()
        self.state.reset_parameters()
        for norm in self.norms.values():
            norm.reset_parameters()  # type: ignore[operator]
        for scale in self.scales.values():
            nn.init.ones_(scale)

    def forward(self, x: Tensor, attention_mask: Tensor | None, cache: Any) -> Tensor:
        if not self.sequence.is_none:
            y, _ = self.sequence(self.norms["sequence"](x), attention_mask, cache)
            x = x + self._scaled(y, "sequence")
        if not self.state.is_none:
            x = x + self._scaled(self.state(self.norms["state"](x)), "state")
        return x

    def _scaled(self, y: Tensor, kind: Kind) -> Tensor:
        return y * self.scales[kind] if kind in self.scales else y


class CausalLM(nn.Module):
    """Next-token logits from tokens; build it with `CausalLM.build`, which also initialises it from a seed."""

    weight_matrices = ("embed.weight",)  # often the output head as well; positions are no weights

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise UserError("vocab_size is needed where no task supplies it", "vocab_size")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_positions, config.d_model) if config.positions == "learned" else None
        layers = []
        for layer_idx, (path, layer) in enumerate(config.expanded()):
            try:
                layers.append(
                    Layer(
                        layer,
                        d_model=config.d_model,
                        scaled=config.residual == "scaled",
                        layer_idx=layer_idx,
                        n_layers=config.n_layers,
                    )
                )
            except UserError as error:
                raise error.under(path) from None
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.d_model, eps=1e-6)
        # A tied head is a second use of the embedding, not a second parameter: nothing can break the tie.
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    @classmethod
    def build(cls, config: ModelConfig, *, seed: int = 0, device: torch.device | str = "cpu") -> "CausalLM":
        """A model whose weights depend on `config` and `seed` alone, whatever the device."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed)
            model.reset_parameters()
        return model.to(device)

    def reset_parameters(self) -> None:
        std = self.config.d_model**-0.5
        for embedding in (self.embed, self.positions):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=std)
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]
        nn.init.ones_(self.norm.weight)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T]; a given cache is continued and advanced.

        `attention_mask` [B, tokens seen + T]: nonzero is a real token. Raises `UserError` where learned positions end.
        """
        x = self.embed(tokens)
        if self.positions is not None:
            new, seen = tokens.shape[1], 0 if cache is None else cache.position
            self._require_positions(seen + new)
            x = x + self.positions(token_positions(attention_mask, new=new, seen=seen, device=tokens.device))
        for index, layer in enumerate(self.layers):
            x = layer(x, attention_mask, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.advance(tokens.shape[1])
        x = self.norm(x)
        return F.linear(x, self.embed.weight) if self.head is None else self.head(x)

    def _require_positions(self, tokens: int) -> None:
        """Raise `UserError` for more tokens than the table has rows; padding counts, so that no mask has to be read."""
        if tokens > self.config.max_positions:
            raise UserError(
                f"{self.config.max_positions} learned positions are too few for {tokens} tokens, padding included; "
                "say more, or positions: none",
                "max_positions",
            )

    def blocks(self) -> Iterator[Block]:
        """Every block, in the order in which tokens pass them."""
        for layer in self.layers:
            yield layer.sequence  # type: ignore[misc]
            yield layer.state  # type: ignore[misc]

    def sequence_blocks(self) -> Iterator[SequenceBlock]:
        return (block for block in self.blocks() if isinstance(block, SequenceBlock))

    def collect_router_stats(self) -> list[RouterStats]:
        """What the routed blocks reported of the last forward, cleared as it is read."""
        stats = [block.router_stats for block in self.blocks() if block.router_stats is not None]
        for block in self.blocks():
            block.router_stats = None
        return stats

    def after_step(self) -> None:
        for block in self.blocks():
            block.after_step()

    def init_cache(self, *, batch: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens, in the config's `cache_dtype` by default."""
        held = dtype or getattr(torch, self.config.cache_dtype)
        device = self.embed.weight.device
        return Cache(
            [
                block.init_cache(batch=batch, capacity=capacity, dtype=held, device=device)
                for block in self.sequence_blocks()
            ]
        )


def _build(ref: BlockRef, d_model: int, *, layer_idx: int, n_layers: int) -> Any:
    try:
        return ref.build(d_model, layer_idx=layer_idx, n_layers=n_layers)
    except UserError as error:
        raise error.under(ref.kind) from None
