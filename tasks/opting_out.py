"""The opt-out list of a run: whoever is on it is never fetched, and forgotten if already here."""

import logging

from tasks.config import RunConfig
from winnow import opt_outs
from winnow.forget_match import Wanted, read_list
from winnow.forgotten import OPTED_OUT
from winnow.opt_outs import clear_notes, find_opted_out, list_digest, noted
from winnow.partitions import run_step
from winnow.receipts import Work, list_done
from winnow.run_files import partitions
from winnow.storage import Storage

logger = logging.getLogger(__name__)


def heed_opt_outs(storage: Storage, config: RunConfig) -> int:
    """Forgets what the opt-out list names; how many samples that were. Partitions that were looked through with this list are not again.

    Raises:
        ConfigError: the list cannot be read, or a line of it is no url, domain, uid or digest.
    """
    if config.opt_out is None:
        return 0
    wanted = read_list(config.opt_out)
    run_step(
        find_opted_out,
        _works(storage, wanted, config.opt_out),
        storage,
        stage=opt_outs.STAGE,
        version=opt_outs.VERSION,
        workers=config.num_workers,
    )
    matches = noted(storage)
    if matches:
        from tasks.forgetting import forget_matches  # it needs stages, and stages need this

        logger.info("opt-out list: %d samples are forgotten", len(matches))
        forget_matches(storage, config, matches, slug=OPTED_OUT, reason="on the opt-out list")
    clear_notes(storage)
    return len(matches)


def _works(storage: Storage, wanted: Wanted, path: str) -> list[Work]:
    mark = list_digest(wanted)
    # Digests of images are known when they were downloaded; all else stands in the manifest, and never changes.
    raw = {done.partition: done.output for done in list_done(storage, "download")} if wanted.sha256s else {}
    place = {"path": path, "sha256": mark}
    return [Work(name=name, inputs={"list": mark, "raw": raw.get(name, "")}, unhashed=place) for name in partitions(storage)]
