"""Prompts that are longer than a model reads: what is cut, and that it is said."""

import logging
from collections.abc import Sequence

from models.catalog import ModelSpec
from models.text import Tokenizer

logger = logging.getLogger(__name__)


def warn_of_cut_prompts(spec: ModelSpec, prompts: Sequence[str]) -> None:
    """Says which prompts are longer than the model reads, and how many of their tokens are not read."""
    for prompt in dict.fromkeys(prompts):
        cut = num_cut_tokens(spec.tokenizer, prompt, spec.context_length)
        if cut:
            logger.warning(
                "the prompt %r is longer than %s reads: %d tokens at its end are cut, %d are read",
                prompt[:40] + "...",
                spec.name,
                cut,
                spec.context_length,
            )


def num_cut_tokens(tokenizer: Tokenizer, prompt: str, context_length: int) -> int:
    """Tokens of a prompt that do not fit."""
    if not tokenizer([prompt], context_length).mask.all():
        return 0
    # A token is a byte at least, and cleaning a text (lower case, broken encodings) makes it a few times longer at most.
    enough = context_length + 4 * len(prompt.encode("utf-8", "replace"))
    return int(tokenizer([prompt], enough).lengths) - context_length
