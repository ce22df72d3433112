"""The errors that a user or a file can cause. Their texts say what was found and what was expected."""


class ExportError(Exception):
    """A source, an option or a model cannot be exported, or a graph is not as expected."""


class ParityError(ExportError):
    """The results of a graph are too far from PyTorch's."""
