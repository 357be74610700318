"""Memory-mapped `.npy` files that hold no file descriptor."""

import ctypes
import mmap
import os
import pathlib
import weakref

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def map_array(path: str | os.PathLike[str]) -> np.ndarray:
    """Maps a `.npy` file into memory and returns it as a read-only array.

    `numpy.load(mmap_mode="r")` keeps a file descriptor open for every array, because Python's `mmap` duplicates it.
    A corpus of a few hundred shards then exceeds `ulimit -n`. Here the descriptor is closed at once; the mapping
    ends with the last array that refers to it. From Python 3.13 on, `mmap.mmap(trackfd=False)` can take the place of
    libc's mmap.

    Raises:
        OSError: the file cannot be read or mapped.
        ValueError: it is not a `.npy` file, or its size does not match its header.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0 of the .npy format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
        count = int(np.prod(shape, dtype=np.int64))
        if fortran_order or dtype.hasobject:
            raise ValueError("not a plain array in C order")
        if size != offset + count * dtype.itemsize:
            raise ValueError(f"{size} bytes, but its header describes {offset + count * dtype.itemsize}")
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    mapped = (ctypes.c_ubyte * size).from_address(address)
    unmap = weakref.finalize(mapped, _libc.munmap, address, size)
    unmap.atexit = False  # type: ignore[missing-attribute]  # other threads may still read when Python exits
    return np.frombuffer(memoryview(mapped).toreadonly(), dtype, count, offset).reshape(shape)
