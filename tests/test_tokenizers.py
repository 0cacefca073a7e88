"""Both tokenizers give the released code's tokens, and the vocabulary that is not ours is fetched, pinned, or asked for."""

import gzip
import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import glide_bpe as glide
from models.byte_pairs import BytePairs, letters_in_vocabulary_order
from models.text import clip_captions, glide_captions
from models.tokenizers import clip_byte_pairs, clip_tokenizer, clip_tokens, vocab_size
from winnow.errors import ConfigError, MissingWeights

sys.path.insert(0, str(Path(__file__).parent))
from file_server import FileServer, serving
from parity import SELECTION


def rows() -> list[dict]:
    """Awkward strings with the released code's tokens: all of them, gzipped, travel with the tests."""
    return json.loads(gzip.decompress((SELECTION / "tokenizer.json.gz").read_bytes()))["rows"]


@pytest.fixture
def vocabulary(photos: Path) -> Path:
    folder = photos / "bpe"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not hold GLIDE's vocabulary")
    return folder


@pytest.fixture
def server(tmp_path: Path):
    with serving(tmp_path / "served") as running:
        yield running


def test_the_selection_is_of_all_59_strings():
    assert len(rows()) == 59


def test_clips_tokens_equal_the_released_codes():
    for row in rows():
        tokens, lengths = clip_tokens([row["text"]], 77)
        assert tokens[0].tolist() == row["clip_padded"], row["text"]
        assert lengths.item() == row["clip_len"]


def test_glides_tokens_equal_the_released_codes(vocabulary):
    bpe = glide.glide_bpe(vocabulary)
    assert (bpe.n_vocab, bpe.end_token) == (50257, 50256)
    for row in rows():
        assert bpe.encode(row["text"]) == row["bpe"], row["text"]
        assert bpe.decode(row["bpe"]) == row["bpe_decode"]
        tokens, mask = bpe.padded(row["text"], 128)
        assert (tokens[:4], tokens[-4:], sum(mask)) == (row["padded_head"], row["padded_tail"], row["n_true"])


def test_glides_captions_are_cut_padded_and_empty_only_when_they_are(vocabulary, monkeypatch):
    monkeypatch.setenv(glide.ENVIRONMENT, str(vocabulary))
    captions = glide_captions(["a red barn", "", " ", "word " * 2000], 128)
    assert captions.tokens.shape == captions.mask.shape == (4, 128)
    assert captions.lengths.tolist() == [3, 0, 1, 128]
    assert (captions.tokens[~captions.mask] == 50256).all()
    assert glide_captions([], 128).tokens.shape == (0, 128)


def merged_round_by_round(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """As the definition has it: the first merge of the list that applies, everywhere from left to right, and again."""
    while True:
        here = [pair for pair in merges if pair in set(itertools.pairwise(pieces))]
        if not here:
            return pieces
        joined, position = [], 0
        while position < len(pieces):
            if tuple(pieces[position : position + 2]) == here[0]:
                joined.append("".join(here[0]))
                position += 2
            else:
                joined.append(pieces[position])
                position += 1
        pieces = joined


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges in any order, of which several may make the same piece: harder than any that were learned."""
    pieces, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(1, 12))):
        pair = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        if pair not in merges:
            merges.append(pair)
            pieces.append("".join(pair))
    return draw(st.permutations(merges))


@settings(max_examples=150, deadline=None)
@example(merges=[("ab", "a"), ("a", "b")], word="abab")  # what a merge makes must wait until that merge was done everywhere
@given(merges=merge_lists(), word=st.text(alphabet="abc", max_size=30))
def test_merging_with_a_heap_is_merging_round_by_round(merges, word):
    bpe = BytePairs(merges, {}, pattern=".")
    assert bpe.merge(list(word)) == merged_round_by_round(list(word), merges)


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_survives_a_vocabulary_of_single_bytes(text):
    ids = {letter: token for token, letter in enumerate(letters_in_vocabulary_order())}
    bpe = BytePairs([], ids, pattern=r"(?s:.)")
    tokens = bpe.encode(text)
    assert bpe.decode(tokens) == text.encode("utf-8", errors="replace").decode()
    assert tokens[:5] == bpe.encode(text, 5)


def test_a_caption_that_spells_the_end_token_is_measured_to_its_true_end():
    captions = clip_captions(["<|endoftext|> a dog"], 16)
    assert captions.lengths.tolist() == [5]
    assert captions.tokens[0, :5].tolist() == [49406, 49407, 320, 1929, 49407]


def test_a_cut_vocabulary_has_the_size_it_says_and_ends_with_the_end_token() -> None:
    tokens = clip_tokenizer(1000, 16)(["a photo of a dog"])
    assert tokens.shape == (1, 16)
    assert int(tokens.max()) == vocab_size(1000) - 1
    assert len(clip_byte_pairs(1000).ids) == vocab_size(1000)


def test_the_whole_vocabulary_is_clips_own() -> None:
    tokens = clip_tokenizer(None, 77)(["a photo of a dog"])[0].tolist()
    assert tokens[:7] == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert vocab_size() == len(clip_byte_pairs().ids) == 49408


def test_open_clips_tokenizer_agrees_on_ordinary_captions() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    captions = [row["text"] for row in rows() if "<|" not in row["text"]]
    assert torch.equal(SimpleTokenizer()(captions), clip_tokenizer()(captions))


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


def test_the_vocabulary_is_fetched_once_into_the_cache(vocabulary, server: FileServer, tmp_path):
    server.copy(vocabulary / "encoder.json.gz", vocabulary / "vocab.bpe.gz")
    folder = glide.fetch_bpe(server.url, tmp_path / "cache")
    assert glide.glide_bpe(folder).n_vocab == 50257
    assert sorted(os.listdir(folder)) == ["encoder.json.gz", "vocab.bpe.gz"]
    glide.fetch_bpe(server.url, tmp_path / "cache")
    assert server.requests == ["/encoder.json.gz", "/vocab.bpe.gz"]


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(server: FileServer, tmp_path):
    (server.folder / "encoder.json.gz").write_bytes(b"something else")
    with pytest.raises(MissingWeights, match=r"answered with 14 bytes of sha256 \w{64}, expected 4debc1cf25.*WINNOW_GLIDE_BPE"):
        glide.fetch_bpe(server.url, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_an_answer_that_breaks_off_is_refused_and_not_kept(server: FileServer, tmp_path):
    (server.folder / "encoder.json.gz").write_bytes(b"x" * 5000)
    server.cut_at = 1000
    with pytest.raises(MissingWeights, match=r"broke off after 1,000 of 5,000 bytes"):
        glide.fetch_bpe(server.url, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(server: FileServer, tmp_path):
    server.stop()
    wanted = rf"no connection .*fetch {server.url}/encoder\.json\.gz \(sha256 4debc1cf\w+\) and bring it to {tmp_path}/cache/encoder"
    with pytest.raises(MissingWeights, match=wanted):
        glide.fetch_bpe(server.url, tmp_path / "cache")


def test_a_folder_without_the_vocabulary_or_with_another_says_which_file(tmp_path, monkeypatch):
    monkeypatch.setenv(glide.ENVIRONMENT, str(tmp_path))
    with pytest.raises(MissingWeights, match=rf"{tmp_path}/encoder\.json\.gz is not there; fetch https://.*sha256 4debc1cf"):
        glide_captions(["a"], 8)
    (tmp_path / "encoder.json.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(MissingWeights, match=r"encoder\.json\.gz is another file \(sha256"):
        glide_captions(["a"], 8)
