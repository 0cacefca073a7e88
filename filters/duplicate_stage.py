"""The steps of the search for near-duplicates and contamination, in order: which work there is, and from what."""

import math
from collections.abc import Mapping, Sequence

from filters import contamination, duplicate_groups, duplicate_search, scoring
from filters.contamination import find_contaminated
from filters.duplicate_groups import choose_best, group_pairs, judge_members
from filters.duplicate_search import (
    WAVE_ROWS,
    assign_cells,
    cell_works,
    exact_works,
    num_blocks,
    num_cells,
    search_cells,
    search_exact,
    search_space,
    train_cells,
)
from filters.duplicate_waves import Waves, bring_waves_up_to_date, count_images
from filters.duplicates import DuplicateConfig
from winnow.digests import digest
from winnow.duplicates import WAVES, duplicates_file, groups_file
from winnow.errors import ConfigError
from winnow.partitions import StageRun, Step, run_step
from winnow.receipts import Work, read_receipts
from winnow.reported import read_reported
from winnow.run_files import withdrawn_uids
from winnow.storage import Storage

CENTROIDS, CELLS, PAIRS, GROUPS = "duplicates-centroids", "duplicates-cells", "duplicates-pairs", "duplicates-groups"
JUDGE, CHOOSE = "duplicates-judge", "duplicates-choose"
CONTAMINATION = "contamination"


def find_duplicates(
    storage: Storage, config: DuplicateConfig, embedded: Mapping[str, str], feature_digest: str, *, workers: int = 0
) -> list[StageRun]:
    """Brings pairs and groups up to date with the embeddings; with mode off removes them.

    Args:
        embedded: partition -> output digest of its embedding.
        feature_digest: of model, weights and precision that made the embeddings.
    """
    if config.mode == "off":
        steps: dict[str, Step] = {CENTROIDS: train_cells, CELLS: assign_cells, PAIRS: search_exact, GROUPS: group_pairs}
        storage.remove(WAVES)
        return [run_step(step, [], storage, stage=stage, version=0) for stage, step in steps.items()]
    images = count_images(storage, embedded)
    cells = num_cells(config, sum(images.values()))
    centroids, runs = _lay_down_cells(storage, config, embedded, feature_digest, cells, workers)
    space, wave_rows = search_space(config, feature_digest, centroids), math.inf if cells else WAVE_ROWS
    waves = bring_waves_up_to_date(storage, space, embedded, images, wave_rows)
    if cells:
        works = list(cell_works(waves, config.limits, centroids=centroids, blocks=num_blocks(config, cells)))
    else:
        works = list(exact_works(waves, config.limits))
    step: Step = search_cells if cells else search_exact
    pairs = run_step(step, works, storage, stage=PAIRS, version=duplicate_search.VERSION, workers=workers)
    return [*runs, pairs, _group(storage, waves, works, pairs, embedded, workers)]


def _lay_down_cells(
    storage: Storage, config: DuplicateConfig, embedded: Mapping[str, str], feature_digest: str, cells: int, workers: int
) -> tuple[str, list[StageRun]]:
    """Trains centroids and sorts features by cell; without cells removes what there was. Returns the centroids' digest."""
    version = duplicate_search.VERSION
    inputs = {"features": feature_digest}
    training = [Work(name="centroids", inputs=inputs, arguments={"cells": cells}, unhashed={"partitions": tuple(sorted(embedded))})]
    trained = run_step(train_cells, training if cells else [], storage, stage=CENTROIDS, version=version, workers=workers)
    centroids = trained.outputs.get("centroids", "")
    arguments = {"centroids": centroids, "nprobe": config.nprobe, "blocks": num_blocks(config, cells) if cells else 0}
    assigning = [Work(name=name, inputs={"embeddings": output}, arguments=arguments) for name, output in embedded.items()]
    assigned = run_step(assign_cells, assigning if cells else [], storage, stage=CELLS, version=version, workers=workers)
    return centroids, [trained, assigned]


def _group(storage: Storage, waves: Waves, works: Sequence[Work], pairs: StageRun, embedded: Mapping[str, str], workers: int) -> StageRun:
    inputs = {
        "pairs": digest(pairs.outputs),
        "embeddings": digest(dict(embedded)),
        "withdrawn": _withdrawn_digest(storage),
        "seen": waves.marks[-1],
    }
    unhashed = {"works": {work.name: int(work.arguments["wave"]) for work in works}, "partitions": tuple(sorted(embedded))}
    work = Work(name="groups", inputs=inputs, unhashed=unhashed)
    return run_step(group_pairs, [work], storage, stage=GROUPS, version=duplicate_groups.VERSION, workers=workers)


def find_contamination(
    storage: Storage, config: DuplicateConfig, embedded: Mapping[str, str], references: Mapping[str, str], *, workers: int = 0
) -> StageRun:
    """Compares all images with the evaluation sets; without any removes what there was.

    Args:
        references: set -> digest of its features, which lie in references/.
    """
    inputs = {"references": digest(dict(references))}
    arguments = {"limits": config.limits, "references": tuple(sorted(references))}
    works = [Work(name=name, inputs={**inputs, "embeddings": output}, arguments=arguments) for name, output in embedded.items()]
    return run_step(
        find_contaminated, works if references else [], storage, stage=CONTAMINATION, version=contamination.VERSION, workers=workers
    )


def settle_duplicates(
    storage: Storage,
    config: DuplicateConfig,
    scoring_works: Sequence[Work],
    *,
    contaminated: Mapping[str, str],
    workers: int = 0,
) -> dict[str, str] | None:
    """Chooses the best of each group among those that everything else keeps.

    Args:
        scoring_works: what scoring would do if no image had a copy.
        contaminated: partition -> output digest of its comparison with evaluation sets, if there are any.

    Returns:
        partition -> digest of what scoring needs to know of other images; None if they do not matter.

    Raises:
        ConfigError: images came or went since the search.
    """
    version = duplicate_groups.VERSION
    if config.mode == "off":
        run_step(judge_members, [], storage, stage=JUDGE, version=version)
        run_step(choose_best, [], storage, stage=CHOOSE, version=version)
        return dict(contaminated) if contaminated else None
    _check_up_to_date(storage, scoring_works)
    groups = _written(storage, GROUPS)
    works = []
    for work in scoring_works:
        others = {
            "groups": groups[groups_file(work.name)],
            "contamination": contaminated.get(work.name, ""),
            "scoring": str(scoring.VERSION),
        }
        works.append(Work(name=work.name, inputs={**work.inputs, **others}, arguments=work.arguments, unhashed=work.unhashed))
    judged = run_step(judge_members, works, storage, stage=JUDGE, version=version, workers=workers)
    reported = sorted(uid for uids in read_reported(storage).values() for uid in uids)
    best = Work(
        name="best",
        inputs={"groups": digest(groups), "judged": digest(judged.outputs), "reported": digest(reported)},
        arguments={"mode": config.mode},
        unhashed={"partitions": tuple(sorted(judged.outputs))},
    )
    run_step(choose_best, [best], storage, stage=CHOOSE, version=version, workers=workers)
    chosen = _written(storage, CHOOSE)
    return {name: digest([chosen[duplicates_file(name)], contaminated.get(name, "")]) for name in judged.outputs}


def _check_up_to_date(storage: Storage, scoring_works: Sequence[Work]) -> None:
    there = digest({work.name: work.inputs["embeddings"] for work in scoring_works})
    receipts = read_receipts(storage, GROUPS)
    if not receipts:
        raise ConfigError("near-duplicates have not been looked for: run `winnow duplicates CONFIG` first, or set duplicates.mode to off")
    if receipts[0].inputs["embeddings"] != there or receipts[0].inputs["withdrawn"] != _withdrawn_digest(storage):
        raise ConfigError("images came or went since near-duplicates were looked for: run `winnow duplicates CONFIG` first")


def _withdrawn_digest(storage: Storage) -> str:
    return digest(sorted(uid for uids in withdrawn_uids(storage).values() for uid in uids))


def _written(storage: Storage, stage: str) -> dict[str, str]:
    """Path -> sha256 of what a stage of one piece of work wrote."""
    return {path: str(entry["sha256"]) for receipt in read_receipts(storage, stage) for path, entry in receipt.outputs.items()}
