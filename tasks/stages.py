"""Every stage by its name, as a plain function of the run's config: in the order in which they run."""

from tasks.data import download_stage, embed_stage, manifest_stage
from tasks.duplicates import duplicates_stage
from tasks.evaluation import regurgitation_stage, report_stage, sample_stage
from tasks.filtering import fit_stage, score_stage, shard_stage
from tasks.policy import Stage
from tasks.relabelling import drift_stage
from tasks.selection import similarity_stage, weigh_stage, words_stage
from tasks.training import train_stage

STAGES: dict[str, Stage] = {
    "manifest": manifest_stage,
    "download": download_stage,
    "embed": embed_stage,
    "duplicates": duplicates_stage,
    "similarity": similarity_stage,
    "fit": fit_stage,
    "score": score_stage,
    "shard": shard_stage,
    "weigh": weigh_stage,
    "words": words_stage,
    "drift": drift_stage,
    "train": train_stage,
    "sample": sample_stage,
    "regurgitation": regurgitation_stage,
    "report": report_stage,
}
