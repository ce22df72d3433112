"""What can go wrong in an export by somebody's fault. The text is for the user: what was found, what was expected."""


class ExportError(Exception):
    """A source, an option or a model that cannot be exported, or a graph that is not what it should be."""


class ParityError(ExportError):
    """A graph whose results are too far from PyTorch's."""
