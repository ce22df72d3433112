"""What is wrong with a checkpoint, said in the words of the file: names, what was found, what was expected."""


class CheckpointError(ValueError):
    """The files are not what they should be, or hold a model that is not written here."""
