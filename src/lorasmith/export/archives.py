"""Files out of archives that somebody else made."""

import shutil
import tarfile
from pathlib import Path

from lorasmith.console import plain


def write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write a plain file's content; names, links and rights in the archive have no say in where and how.

    tarfile's own filter came with Python 3.11.4.

    Raises:
        ValueError: If the path leaves its folder.
    """
    if ".." in path.parts:
        raise ValueError(f"{plain(member.name)} leads out of the archive's folder")
    content = tar.extractfile(member)
    assert content is not None, member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file)
