"""The whole of it: from a manifest to an audited model."""

from prefect import flow

from flows.audit import audit
from flows.curate import curate
from flows.evaluate import evaluate
from flows.train import train
from tasks.config import RunConfig
from tasks.session import session


@flow
def pipeline(config: RunConfig) -> None:
    """curate, train, evaluate, audit, on one workspace."""
    with session(config):
        curate(config)
        train(config)
        evaluate(config)
        audit(config)
