"""Mistakes a person can mend: each carries one clear sentence and is printed without a traceback."""


class MemsslError(Exception):
    """What is wrong, where, and what to do about it."""


class ConfigError(MemsslError):
    """A setting that cannot work."""


class DataError(MemsslError):
    """A data source that cannot be read."""


class ImageError(MemsslError):
    """A picture that cannot be read."""


class BundleError(MemsslError):
    """A bundle whose parts are missing or do not belong together."""


class ModelError(MemsslError):
    """A model that cannot be opened, or cannot answer what was asked."""


class HubError(MemsslError):
    """A repository that cannot be brought from the Hub, or sent to it."""


class RunError(MemsslError):
    """A training run that cannot start or go on."""
