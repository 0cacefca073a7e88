"""What a Prefect server does by itself: a drift pauses the scheduled relabelling, and with it every promotion.

`winnow filter automation` adds it to the server that PREFECT_API_URL names. Without a server nothing is lost: a drift is also written
down in the workspace (`filters/<name>/promotions.jsonl`), and the relabel flow promotes nothing until `winnow filter resume`.
"""

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.events.actions import PauseDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from tasks.relabelling import DRIFT_EVENT
from winnow.errors import ConfigError

NAME = "winnow: drift pauses promotion"
DEPLOYMENT = "relabel/relabel"


def drift_automation(deployment_id: UUID) -> AutomationCore:
    """Pauses a deployment's schedules as soon as a filter of any workspace has drifted."""
    trigger = EventTrigger(
        expect={DRIFT_EVENT},
        match={"prefect.resource.id": "winnow.filter.*"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    return AutomationCore(
        name=NAME,
        description="A filter's new images are unlike those it was certified on: nothing is promoted until a person has looked.",
        trigger=trigger,
        actions=[PauseDeployment(source="selected", deployment_id=deployment_id)],
    )


def ship_drift_automation() -> str:
    """Adds the automation to the server, or leaves the one there is; returns its name.

    Raises:
        ConfigError: the relabel deployment is not on the server.
    """
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise ConfigError(f"the server has no deployment {DEPLOYMENT}: run `prefect --no-prompt deploy --all` first") from None
        if not client.read_automations_by_name(name=NAME):
            client.create_automation(drift_automation(deployment.id))
    return NAME
