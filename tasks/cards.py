"""Cards of a run's filters."""

from pathlib import Path

from filters.card import gather_card
from filters.card_page import render_card
from filters.catalog import FILTERS
from filters.label_files import read_label_file
from filters.labels import LabelStore
from tasks.config import RunConfig
from tasks.filtering import label_store_path
from winnow.errors import ConfigError
from winnow.workspace import existing_workspace


def write_card(config: RunConfig, filter_name: str, *, out: str | None, version: str | None, table: str | None) -> str:
    """Writes a filter's card; returns where.

    Args:
        out: None: `filters/<name>/card-<version>.html` of the workspace.
        table: parquet or CSV with a column uid and further columns to slice by.

    Raises:
        ConfigError: an unknown filter or version, or a file that cannot be read or written.
    """
    if filter_name not in FILTERS:
        raise ConfigError(f"there is no filter {filter_name!r}. Choose from: {', '.join(FILTERS)}")
    storage = existing_workspace(config.workspace)
    extra = read_label_file(table) if table is not None else None
    with LabelStore.open(label_store_path(storage, config)) as store:
        card = gather_card(storage, filter_name, version=version, store=store, extra=extra)
    page = render_card(storage, card)
    if out is None:
        path = f"filters/{filter_name}/card-{card['version']}.html"
        storage.write_text(path, page)
        return storage.place(path)
    try:
        Path(out).write_text(page)
    except OSError as problem:
        raise ConfigError(f"the card cannot be written to {out}: {problem.strerror}. Give another --out.") from problem
    return out
