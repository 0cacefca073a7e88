"""Reads a manifest: a YAML file that names sources (data_manifests/README.md describes it) and says what their columns mean.

Everything is checked here that can be without reading whole files: keys, values, paths, columns, types, emptiness.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import yaml

from winnow.errors import ManifestError
from winnow.object_store import open_store
from winnow.sources import FORMATS, Source, check_source
from winnow.yaml_text import read_yaml

MANIFEST_KEYS = ("name", "sources")
SOURCE_KEYS = {
    "parquet": ("columns",),
    "csv": ("columns", "column_names", "quotes"),
    "tsv": ("columns", "column_names", "quotes"),
    "coco": ("url_field", "captions"),
}
COMMON_KEYS = ("name", "format", "path", "licence", "sha256", "bad_rows")
COLUMN_KEYS = ("url", "caption", "sha256", "licence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A manifest, checked as far as headers and schemas tell."""

    name: str
    sources: tuple[Source, ...]


def load_manifest(path: str | Path) -> Manifest:
    """Reads and checks a manifest, its files' columns and types included; rows and digests are checked by `build_manifest`.

    Raises:
        ManifestError: says what is wrong, in which file, and what would be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise ManifestError(f"manifest {path} cannot be read: {problem.strerror}. Give the path of a YAML file.") from problem
    try:
        content = read_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ManifestError(f"manifest {path} is not YAML: {problem}") from problem
    content = _mapping(content, str(path), MANIFEST_KEYS, required=("sources",))
    entries = content["sources"]
    if not isinstance(entries, list) or not entries:
        raise ManifestError(f"{path}: sources must be a list with at least one source, got {entries!r}")
    sources = tuple(_source(entry, f"{path}, source {number}", Path(path).parent) for number, entry in enumerate(entries, 1))
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"{path}: two sources are named {name!r}. Give each a name of its own.")
    for source in sources:
        check_source(source)
    return Manifest(name=_text(content.get("name", Path(path).stem), f"{path}: name"), sources=sources)


def _mapping(value: Any, where: str, known: tuple[str, ...], *, required: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: expected keys and values ({', '.join(known)}), got {type(value).__name__}")
    for key in value:
        if key not in known:
            raise ManifestError(f"{where}: unknown key {key!r}. Known are {', '.join(known)}.")
    for key in required:
        if key not in value:
            raise ManifestError(f"{where}: {key} is missing. Known keys are {', '.join(known)}.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ManifestError(f"{where} must be text, got {value!r}")
    return value


def _choice(value: Any, where: str, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ManifestError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def _format(entry: dict[str, Any], where: str) -> str:
    """What the source says, or what its path ends in."""
    ending = str(entry.get("path", "")).rpartition(".")[2].lower()
    given = entry.get("format", "coco" if ending == "json" else ending)
    return str(_choice(given, f"{where}: format (by default what path ends in)", FORMATS))


def _source(entry: Any, where: str, folder: Path) -> Source:
    kind = _format(entry, where) if isinstance(entry, dict) else "parquet"
    entry = _mapping(entry, where, COMMON_KEYS + SOURCE_KEYS[kind], required=("name", "path", "licence"))
    where = f"{where} ({entry['name']})"
    columns: dict[str, Any] = {}
    if kind != "coco":
        columns = _mapping(entry.get("columns"), f"{where}: columns", COLUMN_KEYS, required=("url", "caption"))
    for ours, theirs in columns.items():
        _text(theirs, f"{where}: columns: {ours}")
    names = entry.get("column_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ManifestError(f"{where}: column_names must be a list of names, got {names!r}")
    files = _files(_text(entry["path"], f"{where}: path"), where, folder)
    sha256 = entry.get("sha256")
    if sha256 is not None and (len(files) > 1 or not re.fullmatch("[0-9a-fA-F]{64}", str(sha256))):
        raise ManifestError(f"{where}: sha256 must be 64 hexadecimal digits, and path a single file; got {sha256!r} for {len(files)} files")
    return Source(
        name=_text(entry["name"], f"{where}: name"),
        files=files,
        format=kind,
        licence=_text(entry["licence"], f"{where}: licence"),
        sha256=None if sha256 is None else sha256.lower(),
        columns=columns,
        column_names=tuple(names),
        quotes=_choice(entry.get("quotes", kind == "csv"), f"{where}: quotes", (True, False)),
        url_field=_text(entry.get("url_field", "coco_url"), f"{where}: url_field"),
        captions=_choice(entry.get("captions", "all"), f"{where}: captions", ("all", "first")),
        bad_rows=_choice(entry.get("bad_rows", "error"), f"{where}: bad_rows", ("error", "skip")),
    )


def _files(path: str, where: str, folder: Path) -> tuple[str, ...]:
    full = path if "://" in path else str((folder / path).absolute())
    try:
        found = _remote_files(full) if "://" in path else _local_files(full)
    except OSError as problem:
        raise ManifestError(f"{where}: {full} cannot be looked up: {problem}") from problem
    if not found:
        raise ManifestError(f"{where}: there is no file {full}. Paths are relative to the manifest's folder.")
    return tuple(found)


def _local_files(full: str) -> list[str]:
    filesystem = fsspec.filesystem("file")
    return sorted(filesystem.glob(full)) if "*" in full else [full] if filesystem.isfile(full) else []


def _remote_files(url: str) -> list[str]:
    """Raises StorageError if the store does not answer: that is not an absent file."""
    store = open_store(url)
    if "*" not in url:
        return [url] if store.find(store.root) is not None else []
    found = store.call(f"listing {url}", "glob", store.root)
    return sorted(str(store.filesystem.unstrip_protocol(name)) for name in found)
