"""Seeded damage to a checkpoint's folder, and what a naive reader makes of it."""

import hashlib
import json
import os
import socket
from collections import defaultdict

import numpy as np

from mlxdist.checkpoint import manifest as manifests
from mlxdist.layout.entries import ITEM_SIZES

JUNK = (
    None,
    True,
    -1,
    0,
    1,
    7.5,
    2**31,
    2**32,
    2**53,
    2**64,
    -(10**30),
    1e300,
    "",
    "x",
    "../x",
    "a\nb\x1b[2J",
    "n" * 100_000,
    [],
    {},
    [[]] * 1000,
    list(range(100)),
    [2**52] * 70,
    {"$mlx": "x"},
    {"a": {"b": 1}},
)


def sign(path, content):
    """Write a manifest's content with its right sha256."""
    content.pop("sha256", None)
    content = {"sha256": manifests.digest(content), **content}
    (path / manifests.NAME).write_text(json.dumps(content))


def sign_files(path, content):
    """Write a manifest with the sizes and checksums that the files have now."""
    for file in content["files"]:
        data = (path / file["name"]).read_bytes()
        file["nbytes"] = len(data)
        blocks = range(0, len(data), content["block"])
        file["sha256"] = [
            hashlib.sha256(data[at : at + content["block"]]).hexdigest()
            for at in blocks
        ]
    sign(path, content)


# -- of bytes


def edit_bytes(draw, data):
    """Flip, cut, insert, repeat or clear some bytes."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 5, 50])):
        at, count = draw.randrange(len(data) + 1), draw.choice([1, 4, 100, 5000])
        match draw.randrange(6):
            case 0 | 1 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 2:
                del data[at : at + count]
            case 3:
                data[at:at] = draw.randbytes(count)
            case 4:
                data[at:at] = data[at : at + count]
            case 5:
                data[at : at + count] = bytes(len(data[at : at + count]))
    return bytes(data)


# -- of JSON


def _places(value, path=()):
    items = value.items() if isinstance(value, dict) else ()
    for key, child in enumerate(value) if isinstance(value, list) else items:
        yield (*path, key)
        yield from _places(child, (*path, key))


def edit_json(draw, content):
    """Replace, remove, repeat, swap, rename or change some values, in place."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places = list(_places(content))
        *path, key = draw.choice(places)
        at = content
        for part in path:
            at = at[part]
        match draw.randrange(7):
            case 0 | 1:
                at[key] = draw.choice(JUNK)
            case 2:
                del at[key]
            case 3 if isinstance(at, list):
                at.insert(draw.randrange(len(at) + 1), at[key])
            case 4:
                other = draw.choice(
                    list(at) if isinstance(at, dict) else range(len(at))
                )
                at[key], at[other] = at[other], at[key]
            case 5 if isinstance(at, dict):
                at[draw.choice([f"{key}x", "step", "\x00", "k" * 9999])] = at.pop(key)
            case _ if type(at[key]) in (int, float):
                at[key] += draw.choice([-1, 1, 4, 8, 0.5, 10**6])
            case _ if isinstance(at[key], str):
                at[key] = edit_bytes(draw, at[key].encode()).decode("utf8", "replace")
            case _:
                at[key] = draw.choice(JUNK)


# -- of files


def _replace(draw, path, file):
    """Put something else in the place of a file."""
    other = draw.choice(sorted(path.iterdir()))
    size = file.stat().st_size
    kind = draw.randrange(9)
    if kind == 0 and other != file:
        data = other.read_bytes()
        other.write_bytes(file.read_bytes())
        file.write_bytes(data)
        return
    if kind == 1:
        file.rename(file.with_name(f"{file.name}.moved"))
        return
    file.unlink()
    match kind:
        case 2:
            os.mkfifo(file)
        case 3:
            file.mkdir()
        case 4:
            file.symlink_to(file.name)
        case 5:
            file.symlink_to("/dev/zero")
        case 6:
            with socket.socket(socket.AF_UNIX) as server:
                folder = os.open(path, os.O_RDONLY)  # paths of sockets are short
                server.bind(f"/proc/self/fd/{folder}/{file.name}")
                os.close(folder)
        case 7:
            file.touch()
            os.truncate(file, draw.choice([size, 2**40, 2**43]))


def damage_bytes(draw, path):
    file = draw.choice(sorted(path.iterdir()))
    file.write_bytes(edit_bytes(draw, file.read_bytes()))


def damage_files(draw, path):
    _replace(draw, path, draw.choice(sorted(path.iterdir())))


def edit_signed_manifest(draw, path):
    content = json.loads((path / manifests.NAME).read_text())
    edit_json(draw, content)
    sign(path, content)


def edit_signed_data(draw, path):
    """Change a data file, or swap parts of it, and make all checksums right again."""
    content = json.loads((path / manifests.NAME).read_text())
    file = path / draw.choice(content["files"])["name"]
    data = file.read_bytes()
    if draw.random() < 0.5:
        low, high = sorted(draw.sample(range(len(data)), 2))
        data = data[high:] + data[low:high] + data[:low]
    else:
        data = edit_bytes(draw, data)
    file.write_bytes(data)
    sign_files(path, content)


def edit_header(draw, path):
    """Change the JSON header of a safetensors file; of a checkpoint, sign that."""
    file = draw.choice(sorted(path.glob("*.safetensors")))
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    edit_json(draw, header)
    text = json.dumps(header).encode().ljust(end - 8)
    length = draw.choice([len(text)] * 8 + [0, 2**31, 2**63, len(text) + 10**6])
    file.write_bytes(length.to_bytes(8, "little") + text + data[end:])
    if (path / manifests.NAME).exists():
        sign_files(path, json.loads((path / manifests.NAME).read_text()))


DAMAGES = {
    "unsigned": (damage_bytes, damage_files),
    "signed": (
        edit_signed_manifest,
        edit_signed_manifest,
        edit_signed_data,
        edit_header,
    ),
    "plain": (damage_bytes, damage_files, edit_header, edit_header),
}


# -- what is right


def read_naively(path):
    """Return the bytes of each array by identity, trusting all that is written."""
    content = json.loads((path / manifests.NAME).read_text())
    arrays = {}
    for array in content["arrays"]:
        size = ITEM_SIZES[array["dtype"]]
        data = b"".join(
            (path / content["files"][file]["name"]).read_bytes()[at:][
                : (stop - start) * size
            ]
            for start, stop, file, at in array["pieces"]
        )
        arrays[array["kind"], array["path"], array["key"]] = data
    return content, arrays


def read_plain_naively(path):
    """Return the bytes of each tensor by file and name."""
    arrays = defaultdict(dict)
    for file in (path / "model.safetensors", path / "optimizer.safetensors"):
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        for name, tensor in json.loads(data[8:end]).items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                arrays[file.stem][name] = data[end + start : end + stop]
    return arrays


def part_of(data, array, start, stop):
    """Return elements of a saved array's bytes."""
    size = array.itemsize
    return np.frombuffer(data, np.uint8)[start * size : stop * size].tobytes()
