"""The nouns of Spectacles: everything that more than one stage needs."""

__version__ = "0.1.0"
