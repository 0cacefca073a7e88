"""Every error a user can meet. Messages say what is wrong, where, and how to go on.

WinnowError
├── ConfigError         a setting is wrong: nothing has run            (exit code 2)
│   ├── ManifestError   a manifest or one of its url lists is wrong
│   └── MissingWeights  weights or a vocabulary are not on this machine
├── WorkspaceBusy       another run holds the workspace                (exit code 2)
├── CommonCause         what stops one partition stops them all: a stage ends at the first
│   ├── StorageError    the store of the workspace does not answer, or refuses
│   ├── WorkspaceLost   the lock on a workspace was lost in the middle of a run
│   └── DiskFull        no space left on a local disk
├── NotEnoughMemory     a step needs more memory than there is
├── NotEnoughLabels     too few labels to fit, or to prove the promised miss rate
├── StepFailed          partitions of a stage failed; the others are done
├── ConservationError   listed = failed + dropped + kept does not hold
├── ShardError          a tar or its sidecar is damaged
├── CheckpointError     a checkpoint is damaged or of another shape
└── VerifyError         a run's files do not match its receipts
"""


class WinnowError(Exception):
    """Root of the tree: the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(WinnowError, ValueError):
    """A setting is wrong. A ValueError too, so that Prefect shows the message when it builds a config from a dict."""

    exit_code = 2


class ManifestError(ConfigError):
    """A manifest or one of its url lists is wrong: file, row and cure are named."""


class MissingWeights(ConfigError):
    """Weights or a vocabulary are not here and could not be fetched: says what to fetch and where to put it."""


class WorkspaceBusy(WinnowError):
    """Another run holds the workspace."""

    exit_code = 2


class CommonCause(WinnowError):
    """Not the fault of one partition: others would fail alike, so a stage ends at the first instead of trying them all."""


class StorageError(CommonCause):
    """A store of objects did not answer in time, or refused. Never raised for a file that is merely absent (FileNotFoundError)."""


class WorkspaceLost(CommonCause):
    """This run no longer holds the workspace: another run took it over, or the store was out of reach for too long."""


class DiskFull(CommonCause):
    """A local disk, or the space a user may take of it, is full: file and folder are named."""


class NotEnoughMemory(WinnowError):
    """A step asked for more memory than there is: says what makes it smaller."""


class NotEnoughLabels(WinnowError):
    """Too few labels to fit a filter, or to prove its promised miss rate: the number needed is named."""


class StepFailed(WinnowError):
    """Some partitions of a stage failed. The others are done and stay done; the same command goes on from there."""


class ConservationError(WinnowError):
    """Some listed sample is lost or counted twice: listed = failed + dropped + kept does not hold."""


class ShardError(WinnowError):
    """A tar or its sidecar is damaged: file and member are named."""


class CheckpointError(WinnowError):
    """A checkpoint is damaged or of another shape: the first differing parameter is named."""


class VerifyError(WinnowError):
    """A run's files do not match what its receipts say."""
