"""From a manifest to filtered shards."""

from prefect import flow

from tasks.config import RunConfig
from tasks.data import download, embed, manifest
from tasks.duplicates import duplicates
from tasks.filtering import fit, score, shard
from tasks.relabelling import drift, tell_drift
from tasks.selection import count, similarity, weigh
from tasks.session import session


@flow
def curate(config: RunConfig) -> None:
    """Manifest, download, embed, duplicates, fit, score, shard, and a look for drift: does only what is new or changed."""
    with session(config):
        manifest(config)
        download(config)
        embed(config)
        duplicates(config)
        similarity(config)
        fit(config)
        score(config)
        shard(config)
        weigh(config)
        count(config)
        drift(config)
        tell_drift(config)
