"""Ways to damage files, for tests."""

import json


def flip(path, position=None):
    """Flip one bit, in the middle by default."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(bytes(data))


def largest(folder):
    """The largest file below a folder: where the parameters are."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def age(folder):
    """Make a checkpoint what an earlier version of the project left: nothing of digests."""
    (folder / "manifest.json").unlink()
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    metadata["custom_metadata"] = {}
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
