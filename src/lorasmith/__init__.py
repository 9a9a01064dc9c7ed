"""What Lorasmith's scripts share. No control flow of a run lives here."""

__version__ = "0.1.0"
