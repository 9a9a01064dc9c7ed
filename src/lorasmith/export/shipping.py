"""Adapters to and from elsewhere: the hub, or any storage that fsspec knows."""

import json
import re
import tempfile
from pathlib import Path

from lorasmith.errors import ModelError
from lorasmith.export.adapter_file import CONFIG, WEIGHTS, AdapterFile, shown
from lorasmith.export.adapter_folder import copy_files, new_folder
from lorasmith.export.parcel import ENDING, MANIFEST, PACKED, check_manifest, digest, pack, unpack, write_files
from lorasmith.storages import reached, safe, storage_of

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def push(adapter: AdapterFile, address: str, public: bool) -> tuple[str, list[str]]:
    """Send an adapter: its files to a hub repository, or as one parcel to a storage.

    Args:
        address: org/name, or an address with a protocol, such as s3://bucket/folder.
        public: Whether a hub repository may be seen by everybody.

    Returns:
        Where it is now, and a line for each file that was changed on its way.

    Raises:
        LorasmithError: If it cannot go there.
    """
    if "://" in address:
        return _push_parcel(adapter, address)
    _check_hub_id(address)
    import huggingface_hub

    with tempfile.TemporaryDirectory() as temporary:
        lines = write_files(adapter, Path(temporary))
        with reached(address, ModelError):
            huggingface_hub.create_repo(address, private=not public, exist_ok=True)
            if not public and not huggingface_hub.repo_info(address).private:
                raise ModelError(f"{address}: everybody can see this repository. Add --public, or push to another.")
            huggingface_hub.upload_folder(repo_id=address, folder_path=temporary, commit_message="Adapter by Lorasmith")
    return f"https://huggingface.co/{address}", lines


def pull(address: str, out: Path | None) -> Path:
    """Fetch an adapter into a new folder; nothing but the files of a parcel is taken.

    Args:
        out: The folder; by default named like the adapter.

    Raises:
        LorasmithError: If it cannot be fetched, or is damaged.
    """
    if "://" in address:
        name = address.rstrip("/").rpartition("/")[2]
        if not name.endswith(ENDING):
            raise ModelError(f"{safe(address)}: expected a parcel ({ENDING}), at the address that push said.")
        out = out or Path(name.removesuffix(ENDING))
        with tempfile.TemporaryDirectory() as temporary:
            parcel = Path(temporary) / name
            with reached(address, ModelError):
                storage, path = storage_of(address, ModelError)
                storage.get_file(path, str(parcel))
            unpack(parcel, out)
        return out
    _check_hub_id(address)
    import huggingface_hub

    out = out or Path(address.partition("/")[2])
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as temporary:
        with reached(address, ModelError):
            patterns = [*PACKED, MANIFEST]
            huggingface_hub.snapshot_download(address, local_dir=temporary, allow_patterns=patterns)
        fetched = Path(temporary)
        if not ((fetched / WEIGHTS).is_file() and (fetched / CONFIG).is_file()):
            raise ModelError(f"{address}: no adapter as safetensors is there ({CONFIG} and {WEIGHTS}).")
        if (fetched / MANIFEST).is_file():
            _check_fetched(fetched, address)
        copy_files(fetched, folder, PACKED)
    return out


def _push_parcel(adapter: AdapterFile, address: str) -> tuple[str, list[str]]:
    if not address.endswith(ENDING):
        address = f"{address.rstrip('/')}/{adapter.folder.resolve().name}{ENDING}"
    with tempfile.TemporaryDirectory() as temporary:
        parcel, lines = pack(adapter, Path(temporary) / f"adapter{ENDING}")
        with reached(address, ModelError):
            storage, path = storage_of(address, ModelError)
            if storage.exists(path):
                raise ModelError(f"{safe(address)} is there already. Remove it, or choose another address.")
            storage.makedirs(path.rpartition("/")[0], exist_ok=True)
            # A storage of objects shows one when it is whole; a file system shows a file as it grows.
            local = "file" in storage.protocol
            storage.put_file(str(parcel), f"{path}.part" if local else path)
            if local:
                storage.mv(f"{path}.part", path)
    return safe(address), lines


def _check_fetched(folder: Path, address: str) -> None:
    """Compare fetched files with their manifest; a card may have been edited on the hub.

    Raises:
        ModelError: If one differs or is missing.
    """
    try:
        files = check_manifest(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{address}: {MANIFEST} is broken ({shown(error)}). Push the adapter again.") from None
    for name, entry in files.items():
        there = (folder / name).is_file()
        if name != "README.md" and not (there and digest(folder / name) == entry["sha256"]):
            what = "is not as" if there else "is missing, against what"
            raise ModelError(f"{address}: {name} {what} {MANIFEST} says. Push the adapter again.")


def _check_hub_id(address: str) -> None:
    if not HUB_ID.fullmatch(address):
        raise ModelError(
            f"address {shown(address)}; expected a hub id (org/name), or one with a protocol, such as s3://bucket/name "
            "or file:///folder."
        )
