"""Errors a user can act on: each names the cause and the place, and `hint` says what to do about it."""


class SlideFormerError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        message: what went wrong and where (file, line, layer, step).
        hint: the remedy, in the imperative; printed on its own line.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigError(SlideFormerError):
    """A setting is missing, unknown, of the wrong type or out of range."""


class DataError(SlideFormerError):
    """A record or data file cannot be used as training data."""


class WeightsError(SlideFormerError):
    """Weights on disk are missing, extra, of the wrong shape, or in a format that is not read."""


class UnsupportedModel(SlideFormerError):
    """The model cannot be trained exactly by a sliding window, and why."""


class DoesNotFit(SlideFormerError):
    """The plan needs more bytes of a tier than its budget holds."""


class NonFinite(SlideFormerError):
    """A loss, gradient or weight is NaN or infinite; names the step and the layer.

    Args:
        step: the optimizer step, counted from 1; not always the one that was being run when this was noticed.
    """

    def __init__(self, message: str, hint: str, step: int):
        super().__init__(message, hint)
        self.step = step


class WorkerFailed(SlideFormerError):
    """A background worker raised; the original exception is the `__cause__`."""


class EngineFailed(SlideFormerError):
    """A step was asked of an engine that failed before; its state is not to be trusted."""


class CheckpointError(SlideFormerError):
    """A checkpoint is missing, damaged, of another model, or cannot be written."""


class DiskError(SlideFormerError):
    """State that is kept on disk during a run cannot be written or read back, or is not what was written."""
