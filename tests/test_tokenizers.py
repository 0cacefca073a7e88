import pytest

from models.tokenizers import clip_tokenizer, vocab_size
from winnow.errors import ConfigError


def test_a_cut_vocabulary_has_the_size_it_says_and_ends_with_the_end_token() -> None:
    tokens = clip_tokenizer(1000, 16)(["a photo of a dog"])
    assert tokens.shape == (1, 16)
    assert int(tokens.max()) == vocab_size(1000) - 1


def test_the_whole_vocabulary_is_clips_own() -> None:
    tokens = clip_tokenizer(None, 77)(["a photo of a dog"])[0].tolist()
    assert tokens[:7] == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert vocab_size() == 49408


def test_a_long_text_is_cut_and_keeps_its_end_token() -> None:
    tokens = clip_tokenizer(1000, 8)(["red " * 50])[0].tolist()
    assert tokens[0] == vocab_size(1000) - 2 and tokens[-1] == vocab_size(1000) - 1


def test_text_of_any_script_has_tokens() -> None:
    tokens = clip_tokenizer(100, 32)(["水 <b>&amp; \u202e emoji 🙂"])[0]
    assert int((tokens > 0).sum()) > 5


@pytest.mark.parametrize("merges", [0, 50_000])
def test_impossible_numbers_of_merges_are_refused(merges: int) -> None:
    with pytest.raises(ConfigError, match=r"num_merges must be in 1\.\.48894"):
        clip_tokenizer(merges)
