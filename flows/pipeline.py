"""The whole of it: from a manifest to an audited model."""

from prefect import flow

from flows.audit import audit
from flows.curate import curate
from flows.evaluate import evaluate
from flows.train import train
from tasks.config import RunConfig
from tasks.session import session
from tasks.training import find_vocabularies


@flow
def pipeline(config: RunConfig) -> None:
    """curate, train, evaluate, audit, on one workspace."""
    with session(config):
        find_vocabularies(config)  # curating takes days; training must not fail afterwards for want of a file
        curate(config)
        train(config)
        evaluate(config)
        audit(config)
