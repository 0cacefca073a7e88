"""What the trained models do."""

from prefect import flow

from tasks.config import RunConfig
from tasks.evaluation import check_regurgitation, sample
from tasks.session import session


@flow
def evaluate(config: RunConfig) -> None:
    """Samples for training captions, and how close they come to training images."""
    with session(config):
        sample(config)
        check_regurgitation(config)
