"""The caption side of GLIDE: captions to padded tokens, tokens to what the UNet attends to (arXiv:2112.10741, section 2.3).

Parameter names and shapes equal the released checkpoints'. The tokens themselves come from models/glide_bpe.py and models/tokenizers.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.devices import onto
from models.glide_bpe import glide_bpe
from models.kernels import is_plain
from models.tokenizers import clip_tokens
from models.winograd import state_of
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Sizes of the text transformer."""

    context_length: int
    """Tokens of a caption; longer ones are cut."""
    width: int
    num_layers: int
    num_heads: int
    vocab_size: int
    """Rows of the embedding table."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(f"TextConfig: width {self.width} is not a multiple of num_heads {self.num_heads}")


class Captions(NamedTuple):
    """A batch of captions as numbers."""

    tokens: Tensor
    """(batch, context) int64."""
    mask: Tensor
    """(batch, context) bool: True on real tokens, False on padding. All False is the empty caption."""

    def to(self, device: torch.device | str) -> "Captions":
        return Captions(onto(self.tokens, device), onto(self.mask, device))

    @property
    def lengths(self) -> Tensor:
        """Real tokens of each caption, (batch,) int64."""
        return self.mask.sum(dim=1)


Tokenizer = Callable[[Sequence[str], int], Captions]
"""Captions and the context length to tokens. Raises MissingWeights if its vocabulary is not on this machine."""


def clip_captions(
    captions: Sequence[str], context_length: int, *, num_merges: int | None = None, empty_is_padding: bool = False
) -> Captions:
    """CLIP's BPE: [start, ..., end], padded with 0.

    Args:
        num_merges: merges to take of CLIP's list; fewer make a smaller vocabulary. None takes all.
        empty_is_padding: an empty caption becomes padding only, as GLIDE's classifier-free guidance has it; CLIP itself keeps [start, end].
    """
    tokens, lengths = clip_tokens(captions, context_length, num_merges)
    mask = torch.arange(context_length)[None] < lengths[:, None]
    if empty_is_padding:
        mask &= torch.tensor([bool(caption.strip()) for caption in captions], dtype=torch.bool)[:, None]
    return Captions(torch.where(mask, tokens, 0), mask)


def glide_captions(captions: Sequence[str], context_length: int) -> Captions:
    """GLIDE's own BPE, which the released diffusion models were trained with: no start or end token; only "" is the empty caption.

    Its vocabulary is fetched at first use, see models/glide_bpe.py. Raises MissingWeights, which says how to get it, if it cannot be.
    """
    bpe = glide_bpe()
    rows = [bpe.padded(caption, context_length) for caption in captions]
    tokens = torch.tensor([tokens for tokens, _ in rows], dtype=torch.long).view(len(rows), context_length)
    return Captions(tokens, torch.tensor([mask for _, mask in rows], dtype=torch.bool).view(len(rows), context_length))


def empty_captions(count: int, context_length: int) -> Captions:
    """What classifier-free guidance calls the empty caption: padding only. The token ids are never looked at."""
    return Captions(torch.zeros(count, context_length, dtype=torch.long), torch.zeros(count, context_length, dtype=torch.bool))


class AttendsToText(Protocol):
    """A block that turns captions into keys and values of its own."""

    def keys_values(self, sequence: Tensor) -> tuple[Tensor, Tensor]: ...


class TextEncoding:
    """What the UNet sees of captions. Sampling with one encoding computes each block's keys and values of a caption once."""

    def __init__(self, pooled: Tensor, sequence: Tensor, *, parts: "Sequence[tuple[TextEncoding, int]]" = ()) -> None:
        """
        Args:
            parts: the encodings that this one consists of, in order, each so many times; their keys and values are taken.
        """
        self.pooled = pooled
        """(batch, 4 * model_channels): added to the time embedding."""
        self.sequence = sequence
        """(batch, width, context): attended to in every attention block."""
        self._parts = tuple(parts)
        self._kept: WeakKeyDictionary[AttendsToText, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def __len__(self) -> int:
        """Captions."""
        return len(self.pooled)

    def repeat(self, count: int) -> "TextEncoding":
        """Each caption's encoding for `count` images, in the order all captions, all captions, ..."""
        return TextEncoding.cat([self] * count) if len(self) > 1 else self._expanded(count)

    def _expanded(self, count: int) -> "TextEncoding":
        return TextEncoding(self.pooled.expand(count, -1), self.sequence.expand(count, -1, -1), parts=[(self, count)])

    @staticmethod
    def cat(encodings: "Sequence[TextEncoding]") -> "TextEncoding":
        """Encodings of several batches as one, which shares their keys and values."""
        return TextEncoding(
            torch.cat([one.pooled for one in encodings]),
            torch.cat([one.sequence for one in encodings]),
            parts=[(one, 1) for one in encodings],
        )

    def keys_values(self, block: AttendsToText) -> tuple[Tensor, Tensor]:
        """A block's keys and values of these captions, (batch, heads, context, head_channels) each.

        Kept from the first call on, unless gradients are asked for; the weights must not change while an encoding is in use.
        """
        if torch.is_grad_enabled() or is_plain() or torch.compiler.is_compiling():
            return block.keys_values(self.sequence)
        found = self._kept.get(block)
        if found is None:
            found = self._kept[block] = self._from_parts(block) if self._parts else block.keys_values(self.sequence)
        return found

    def _from_parts(self, block: AttendsToText) -> tuple[Tensor, Tensor]:
        rows = [(one.keys_values(block), count) for one, count in self._parts]
        if len(rows) == 1:
            ((k, v), count) = rows[0]
            return k.expand(count * len(k), -1, -1, -1), v.expand(count * len(v), -1, -1, -1)
        k, v = (torch.cat([both[index].repeat(count, 1, 1, 1) for both, count in rows]) for index in (0, 1))
        return k, v


class Attention(nn.Module):
    """Self-attention over all positions, padding included. Channels of the fused projection lie per head as [q | k | v]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, width) to the same."""
        batch, context, width = x.shape
        q, k, v = self.c_qkv(x).view(batch, context, self.num_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, context, width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Pre-LN transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class TextEncoder(nn.Module):
    """The text transformer. The UNet inherits from it, because the released checkpoints keep its parameters at top level."""

    def __init__(self, config: TextConfig, pooled_width: int) -> None:
        super().__init__()
        self.transformer = Transformer(config.width, config.num_layers, config.num_heads)
        self.final_ln = nn.LayerNorm(config.width)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, config.width))
        self.padding_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, config.width))
        self.transformer_proj = nn.Linear(config.width, pooled_width)
        self._kept_empty: tuple[object, TextEncoding] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept_empty": None}  # a copy, or what is pickled, keeps nothing

    def encode_text(self, tokens: Tensor, mask: Tensor) -> TextEncoding:
        """Captions (batch, context) int64 with their mask (batch, context) bool, to what the UNet attends to.

        A padded position is its own learned vector, with neither token nor position embedding, and is attended to like any other.
        """
        if not (torch.is_grad_enabled() or is_plain() or torch.compiler.is_compiling() or mask.any()):
            return self._empty_caption(mask.shape[1]).repeat(len(mask))
        x = self.token_embedding(tokens) + self.positional_embedding
        x = torch.where(mask[..., None], x, self.padding_embedding)
        return self._encoded(x)

    def _encoded(self, x: Tensor) -> TextEncoding:
        x = self.final_ln(self.transformer(x))
        return TextEncoding(self.transformer_proj(x[:, -1]), x.transpose(1, 2))

    def _empty_caption(self, context: int) -> TextEncoding:
        """The empty caption's encoding, (1, ...): kept until a weight changes."""
        # Of all weights, for the encoding keeps the attention blocks' keys and values, too.
        state = (context, torch.is_autocast_enabled(self.padding_embedding.device.type), *map(state_of, self.parameters()))
        if self._kept_empty is None or self._kept_empty[0] != state:
            self._kept_empty = (state, self._encoded(self.padding_embedding[None, :context]))
        return self._kept_empty[1]
