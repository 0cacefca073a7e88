"""Training on the filtered shards."""

from prefect import flow

from tasks import training
from tasks.config import RunConfig
from tasks.session import session


@flow
def train(config: RunConfig) -> None:
    """Trains the run's recipes, or resumes them."""
    with session(config):
        training.train(config)
