"""A disk that forgets what was not flushed, after ALICE (Pillai et al., OSDI 2014).

Records what a save asks of the system. A crash after any of the operations leaves what
was flushed before it; of names that were not flushed, none or all.
"""

import os
from contextlib import contextmanager
from pathlib import Path


class Folder:
    """The files and folders in a folder: bytes or Folders by name."""

    def __init__(self):
        self.names, self.flushed = {}, {}


class File:
    """A file, which is empty until it is flushed."""

    def __init__(self):
        self.data = b""


class Disk:
    """A folder, empty and flushed, and what operations make of it."""

    def __init__(self):
        self.root = Folder()

    def apply(self, operation, path, *arguments):
        getattr(self, operation)(path, *arguments)

    def _find(self, path):
        node = self.root
        for name in path.parts:
            node = node.names[name]
        return node

    def _put(self, path, node):
        self._find(path.parent).names[path.name] = node

    def mkdir(self, path):
        self._put(path, Folder())

    def create(self, path):
        self._put(path, File())

    def rename(self, path, target):
        self._put(target, self._find(path.parent).names.pop(path.name))

    def unlink(self, path):
        del self._find(path.parent).names[path.name]

    rmdir = unlink

    def flush(self, path, data):
        node = self._find(path)
        if data is None:
            node.flushed = dict(node.names)
        else:
            node.data = data

    def after_crash(self, folder, keeps_names, node=None):
        """Write what a crash leaves to a real folder."""
        node = node or self.root
        folder.mkdir()
        for name, child in (node.names if keeps_names else node.flushed).items():
            if isinstance(child, Folder):
                self.after_crash(folder / name, keeps_names, child)
            else:
                (folder / name).write_bytes(child.data)


@contextmanager
def recorded(root, patch):
    """Yield a list of the operations below a root, as they are made."""
    operations, open_files = [], {}
    originals = {
        name: getattr(os, name)
        for name in ["open", "mkdir", "rename", "unlink", "rmdir", "fsync"]
    }

    def local(path, folder=None):
        if folder is not None:
            path = Path(os.readlink(f"/proc/self/fd/{folder}")) / path
        path = Path(path)
        return path.relative_to(root) if path.is_relative_to(root) else None

    def record(operation, path, *arguments):
        if path is not None and path.name != ".lock":  # which has no data
            operations.append((operation, path, *arguments))

    def changed(name):
        def call(path, *arguments, dir_fd=None, **options):
            if dir_fd is not None:
                options["dir_fd"] = dir_fd
            originals[name](path, *arguments, **options)
            record(name, local(path, dir_fd))

        return call

    def os_open(path, flags, *arguments, **options):
        file = originals["open"](path, flags, *arguments, **options)
        open_files[file] = local(path, options.get("dir_fd"))
        if flags & os.O_CREAT:
            record("create", open_files[file])
        return file

    def fsync(file):
        originals["fsync"](file)
        is_folder = os.path.isdir(file)
        data = None if is_folder else Path(f"/proc/self/fd/{file}").read_bytes()
        record("flush", open_files[file], data)

    def rename(path, target):
        originals["rename"](path, target)
        record("rename", local(path), local(target))

    with patch.context() as patched:
        for name in ("mkdir", "unlink", "rmdir"):
            patched.setattr(os, name, changed(name))
        patched.setattr(os, "open", os_open)
        patched.setattr(os, "fsync", fsync)
        patched.setattr(os, "rename", rename)
        patched.setattr(os, "replace", rename)
        yield operations
