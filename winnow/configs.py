"""What all config dataclasses share."""

from typing import Final

STRICT: Final = {"extra": "forbid"}
"""`__pydantic_config__: ClassVar = STRICT` in a config: an unknown setting in a run's YAML, or in a flow's parameters, is an
error. Without it a typo passes for the default. (Pydantic reads it; the dataclass itself needs no pydantic.)"""
