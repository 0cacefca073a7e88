"""Released checkpoints come in and go out bit for bit, and what is none is refused by the first thing that is wrong with it."""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.cli import main
from models.catalog import MODELS, TINY_BASE, TINY_NOISED_CLIP, ModelSpec, diffusion_model, noised_clip_model
from models.checkpoints import Checkpoint, load_weights, save_checkpoint
from models.released import RELEASED, export_weights, fetch_weights, import_weights
from models.weight_files import read_about, read_tensors, write_tensors
from winnow.errors import CheckpointError, ConfigError, MissingWeights

sys.path.insert(0, str(Path(__file__).parent))
from file_server import FileServer, serving

TEXT = dataclasses.replace(TINY_BASE.text, width=32, num_layers=1, num_heads=2, vocab_size=300)
SMALL = dataclasses.replace(TINY_BASE, image_size_px=16, channel_mult=(1, 1), head_channels=16, text=TEXT)
CLIP = dataclasses.replace(TINY_NOISED_CLIP, image_width=36, image_layers=1, text_width=36, text_layers=1, vocab_size=300)
SPECS = (
    diffusion_model("base", SMALL, MODELS["tiny-base"].tokenizer),
    diffusion_model("base-inpaint", dataclasses.replace(SMALL, inpaint=True), MODELS["tiny-base"].tokenizer),
    noised_clip_model("noised-clip", CLIP, MODELS["tiny-noised-clip"].tokenizer),
)


@pytest.fixture(autouse=True)
def small_models() -> Iterator[None]:
    """Stand-ins of the released models: same names, same structure, a thousandth of the size."""
    everything = dict(MODELS)
    _replace({spec.name: spec for spec in SPECS})
    yield
    _replace(everything)  # all at once: their order is what messages list


def _replace(specs: dict[str, ModelSpec]) -> None:
    MODELS.clear()
    MODELS.update(specs)


@pytest.fixture
def server(tmp_path: Path):
    with serving(tmp_path / "served") as running:
        yield running


def state(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with no number at zero, so that no mistake goes unseen."""
    torch.manual_seed(seed)
    return {parameter: torch.randn_like(tensor) for parameter, tensor in MODELS[name].build().state_dict().items()}


def released_files(folder: Path, name: str, seed: int = 0) -> list[Path]:
    """The model as it would be released, with the released names of its files."""
    folder.mkdir(exist_ok=True)
    weights = state(name, seed)
    if name != "noised-clip":
        parts = [weights]
    else:
        parts = [{key[len(tower) :]: value for key, value in weights.items() if key.startswith(tower)} for tower in ("image.", "text.")]
    files = [folder / file for file in RELEASED[name]]
    for file, part in zip(files, parts, strict=True):
        torch.save(part, file)
    return files


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("name", ["base", "base-inpaint", "noised-clip"])
def test_imported_and_exported_again_is_bit_for_bit_what_was_released(tmp_path, name):
    files = released_files(tmp_path / "theirs", name)
    count = import_weights(files, name, tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    assert count == sum(tensor.numel() for tensor in ours.values())
    assert same(dict(sorted(ours.items())), dict(sorted(state(name).items())))
    outs = [tmp_path / f"{number}.pt" for number in range(len(files))]
    assert export_weights(tmp_path / "ours.safetensors", name, outs) == count
    for file, out in zip(files, outs, strict=True):
        assert same(torch.load(file, weights_only=True), torch.load(out, weights_only=True))


def test_the_files_of_a_noised_clip_come_in_any_order_but_both(tmp_path):
    image, text = released_files(tmp_path / "theirs", "noised-clip")
    import_weights([text, image], "noised-clip", tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match=r"text_enc\.pt is not a noised-clip: image\.blocks\.block_0\.f_attn\.f_c\.b is missing"):
        import_weights([text], "noised-clip", tmp_path / "ours.safetensors")


def test_what_was_imported_loads_as_the_model(tmp_path):
    import_weights(released_files(tmp_path / "theirs", "base"), "base", tmp_path / "ours.safetensors")
    model = load_weights(tmp_path / "ours.safetensors", MODELS["base"])
    assert same(dict(model.state_dict()), state("base"))


def test_a_file_of_float16_is_taken_for_what_it_says(tmp_path):
    half = {name: tensor.half() for name, tensor in state("base").items()}
    torch.save(half, tmp_path / "base.pt")
    import_weights([tmp_path / "base.pt"], "base", tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    assert all(ours[name].dtype == torch.float32 and torch.equal(ours[name], tensor.float()) for name, tensor in half.items())


def test_a_checkpoint_of_a_training_is_exported_by_its_average(tmp_path):
    ema = state("base", seed=1)
    folder = save_checkpoint(tmp_path, 5, Checkpoint(state("base"), ema, {}, {"step": 5}))
    export_weights(folder, "base", [tmp_path / "base.pt"])
    assert same(torch.load(tmp_path / "base.pt", weights_only=True), ema)


def test_weights_of_another_model_are_refused_and_told_what_they_are(tmp_path):
    files = released_files(tmp_path / "theirs", "base")
    wanted = (
        r"base\.pt is not a base-inpaint: input_blocks\.0\.0\.weight is \[32, 3, 3, 3\] where \[32, 7, 3, 3\] is expected\. "
        r"These weights are of base: name that"
    )
    with pytest.raises(CheckpointError, match=wanted):
        import_weights(files, "base-inpaint", tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a noised-clip: .*These weights are of base"):
        export_weights(files[0], "noised-clip", [tmp_path / "1.pt", tmp_path / "2.pt"])
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"They are of no model in models/catalog\.py"):
        import_weights([tmp_path / "w.pt"], "base", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


class Planted:
    """A pickle that would run code when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path, zipped):
    torch.save({**state("base"), "more": Planted(tmp_path / "was-here")}, tmp_path / "base.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"base\.pt is not a file of tensors .*\(UnpicklingError: Trying to load unsupported GLOBAL"):
        import_weights([tmp_path / "base.pt"], "base", tmp_path / "ours.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["base.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds something else than named tensors: a list"),
        ({"step": 7}, "'step' is a int"),
        ({"model": {"w": torch.zeros(1)}}, "'model' is a dict"),
        ({3: torch.zeros(1)}, "3 is a Tensor"),
    ],
)
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "base.pt")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        import_weights([tmp_path / "base.pt"], "base", tmp_path / "ours.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>not found</html>", bytes(range(256)) * 40])
def test_a_file_that_is_no_checkpoint_at_all_is_refused(tmp_path, content):
    (tmp_path / "base.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"base\.pt is not a file of tensors alone, or is damaged"):
        read_tensors(tmp_path / "base.pt")


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path):
    torch.save({"w": torch.arange(40.0), "b": torch.zeros(3)}, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        (tmp_path / "w.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / "w.pt")


def test_wrong_endings_and_numbers_of_files_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"what is written is a \.safetensors file; x\.pt has another ending"):
        import_weights(["nowhere.pt"], "base", "x.pt")
    with pytest.raises(ConfigError, match=r"what is written is a \.pt file"):
        export_weights("nowhere", "base", ["x.bin"])
    with pytest.raises(ConfigError, match="noised-clip is released as 2 files, and 1 were named"):
        export_weights("nowhere", "noised-clip", ["x.pt"])
    with pytest.raises(CheckpointError, match=r"nowhere\.pt is not there"):
        import_weights(["nowhere.pt"], "base", "x.safetensors")


def test_a_written_file_remembers_what_it_was_made_of_and_has_the_same_bytes_every_time(tmp_path):
    about = {"model": "base", "sources": ["abc", "def"]}
    for name in ("one", "other"):
        write_tensors(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(3, 2).T}, about)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert read_about(tmp_path / "one") == about
    assert read_about(tmp_path / "nowhere") is None
    assert sorted(os.listdir(tmp_path)) == ["one", "other"]


def test_fetched_weights_are_imported_once_and_their_digests_hold_from_then_on(server: FileServer, tmp_path):
    server.copy(*released_files(tmp_path / "theirs", "noised-clip"))
    cache = tmp_path / "cache"
    path = fetch_weights("noised-clip", source=server.url, cache=cache)
    assert path == cache / "noised-clip.safetensors"
    recorded = (cache / "clip_text_enc.pt.sha256").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}  clip_text_enc\.pt\n", recorded)
    before = path.stat().st_mtime_ns
    assert fetch_weights("noised-clip", source=server.url, cache=cache).stat().st_mtime_ns == before
    assert server.requests == ["/clip_image_enc.pt", "/clip_text_enc.pt"]
    # Somebody changes the file here: it is refused. It is removed, and the server has another by now: so is that.
    (cache / "clip_text_enc.pt").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=r"clip_text_enc\.pt has sha256 \w+, not \w+\. Remove it to fetch it again"):
        fetch_weights("noised-clip", source=server.url, cache=cache)
    (cache / "clip_text_enc.pt").unlink()
    (server.folder / "clip_text_enc.pt").write_bytes(b"another")
    with pytest.raises(MissingWeights, match=rf"answered with 7 bytes of sha256 \w+, expected {recorded[:64]}"):
        fetch_weights("noised-clip", source=server.url, cache=cache)


def test_a_file_that_was_brought_by_hand_is_taken_and_its_digest_recorded(server: FileServer, tmp_path):
    server.stop()
    cache = tmp_path / "cache"
    with pytest.raises(
        MissingWeights, match=rf"base\.pt is not in {cache} and cannot be fetched: no connection .*bring it to {cache}/base\.pt"
    ):
        fetch_weights("base", source=server.url, cache=cache)
    released_files(cache, "base")
    assert fetch_weights("base", tmp_path / "out" / "base.safetensors", source=server.url, cache=cache).is_file()
    assert (cache / "base.pt.sha256").is_file()


def test_an_absent_file_and_a_broken_answer_are_told_apart(server: FileServer, tmp_path):
    with pytest.raises(MissingWeights, match="the server answered 404"):
        fetch_weights("base", source=server.url, cache=tmp_path / "cache")
    (server.folder / "base.pt").write_bytes(b"x" * 4000)
    server.cut_at = 100
    with pytest.raises(MissingWeights, match="broke off after 100 of 4,000 bytes"):
        fetch_weights("base", source=server.url, cache=tmp_path / "cache")
    with pytest.raises(MissingWeights, match=r"is no http\(s\) url"):
        fetch_weights("base", source="file:///etc", cache=tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_only_what_was_released_can_be_fetched(tmp_path):
    with pytest.raises(ConfigError, match=r"no weights of 'base-3\.5b' were released, only of base, base-inpaint, upsampler"):
        fetch_weights("base-3.5b", cache=tmp_path)


def winnow(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["winnow", "weights", *map(str, arguments)])
    main()


def test_the_command_line_imports_exports_and_says_in_a_line_what_is_wrong(tmp_path, monkeypatch, capsys):
    (file,) = released_files(tmp_path / "theirs", "base")
    ours, again = tmp_path / "ours.safetensors", tmp_path / "again.pt"
    winnow(monkeypatch, "import", file, "--model", "base", "--out", ours)
    winnow(monkeypatch, "export", ours, "--model", "base", "--out", again)
    assert re.search(rf"{again}: [\d,]+ parameters of base", capsys.readouterr().out)
    assert same(torch.load(again, weights_only=True), torch.load(file, weights_only=True))
    file.write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="1"):
        winnow(monkeypatch, "import", file, "--model", "base", "--out", ours)
    told = capsys.readouterr().err
    assert told.startswith(f"winnow: {file} is not a file of tensors alone") and len(told.splitlines()) == 1


def test_the_command_line_fetches(server: FileServer, tmp_path, monkeypatch, capsys):
    server.copy(*released_files(tmp_path / "theirs", "base"))
    winnow(monkeypatch, "fetch", "base", "--from", server.url, "--cache", tmp_path / "cache", "--out", tmp_path / "base.safetensors")
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "base.safetensors")]
    assert read_about(tmp_path / "base.safetensors")["model"] == "base"
    with pytest.raises(SystemExit, match="2"):
        winnow(monkeypatch, "fetch", "glide-bpe", "--from", server.url, "--cache", tmp_path / "cache")
    assert "encoder.json.gz is not in" in capsys.readouterr().err


def test_files_of_tensors_may_be_read_by_whoever_may_read_other_files(tmp_path):
    write_tensors(tmp_path / "ours.safetensors", {"weight": torch.zeros(2)})
    (tmp_path / "other").touch()
    assert (tmp_path / "ours.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
