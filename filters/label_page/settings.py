"""What a labelling page can be told."""

from dataclasses import dataclass
from typing import ClassVar

from winnow.configs import STRICT
from winnow.errors import ConfigError

INSTRUCTIONS = (
    "The picture is hidden and will not be shown again to anybody. Do not copy, describe or send it. "
    "Tell the person who is responsible for this data now: they know whom the law asks them to notify. You need not go on today."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageConfig:
    """How people are asked on the page."""

    __pydantic_config__: ClassVar = STRICT

    session_images: int = 1_000
    """Answers after which a break is due."""
    session_minutes: float = 50.0
    """Minutes of work after which a break is due."""
    blurred_session_images: int = 400
    """As `session_images`, for filters whose images are blurred."""
    blurred_session_minutes: float = 25.0
    break_minutes: float = 5.0
    """Length of a break; as long a pause ends a session, too."""
    min_dwell_ms: int = 300
    """In a blind mode an answer is taken no sooner than this after the image appears; earlier keys are counted."""
    lease_minutes: float = 10.0
    """How long an image is kept for whoever looks at it."""
    image_px: int = 1_400
    """Longer side of an image as the page gets it; larger ones are made smaller, smaller ones stay."""
    report_instructions: str = INSTRUCTIONS
    """What somebody reads who has reported illegal material: whom to tell, and how."""

    def __post_init__(self) -> None:
        for name in ("session_images", "session_minutes", "blurred_session_images", "blurred_session_minutes", "lease_minutes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"label_page.{name} must be more than 0, got {getattr(self, name)}")
        for name in ("break_minutes", "min_dwell_ms"):
            if getattr(self, name) < 0:
                raise ConfigError(f"label_page.{name} must be 0 or more, got {getattr(self, name)}")
        if not 64 <= self.image_px <= 8_000:
            raise ConfigError(f"label_page.image_px must be between 64 and 8000, got {self.image_px}")
        if not self.report_instructions.strip():
            raise ConfigError("label_page.report_instructions must say whom to tell of illegal material")
