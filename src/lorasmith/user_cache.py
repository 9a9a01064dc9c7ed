"""Where what can be made again is kept between runs."""

import os
from pathlib import Path


def user_cache() -> Path:
    """LORASMITH_CACHE, or lorasmith/ in the user's cache folder."""
    return Path(os.environ.get("LORASMITH_CACHE") or Path.home() / ".cache" / "lorasmith")
