"""Reading of a checkpoint that somebody else pickled, without executing anything that it asks for.

`torch.load(weights_only=True)` reads most files. It refuses those whose hyperparameters hold objects (omegaconf,
argparse, fairseq). These are read by an unpickler of our own: it builds tensors and plain containers, turns objects of
known libraries into inert [`Placeholder`]s without importing the libraries, and refuses every other import. It opens
the archive with `zipfile` and not through `torch.load(pickle_module=...)`, which would run a TorchScript archive or
unpack a tar file on the way.

A file cannot take more memory or time than its length warrants. Before anything is built, `_scan` follows the opcodes
of its pickle, of which there may be at most `MAX_OPERATIONS`, and refuses memo positions beyond the pickle's length
tuples nested deeper than `MAX_DEPTH`, and objects that repeat others until they have more than `MAX_PARTS` parts.
Archives must be stored and not compressed, as `torch.save` writes them, and no larger than the file. Storages together
are no larger than the file, and tensors together at most `MAX_VIEWS` times as large. So reading takes at most
`MAX_VIEWS + 1` times the file's length beside some 200 MB for objects, and about ten seconds beside reading the disk.
One kind of file can take longer, some 0.2 s for each of its calls: one that copies a list of a million into sets.
"""

import io
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

# Objects of these packages may lie in a training checkpoint; they become placeholders. A file that names anything else
# is no checkpoint of the projects we know and is refused, though a placeholder would be just as inert.
_INERT_PACKAGES = frozenset(
    {"EAT", "data2vec", "examples", "fairseq", "nassl"}  # the projects
    | {"argparse", "hydra", "omegaconf"}  # their settings
    | {"lightning", "lightning_fabric", "lightning_utilities", "numpy", "pytorch_lightning", "torchmetrics"}
    | {"collections", "datetime", "enum", "functools", "pathlib", "typing"}
)
_INERT_BUILTINS = frozenset(
    {"bool", "bytes", "dict", "float", "int", "list", "object", "range", "slice", "str", "tuple"}
)
_INERT_TORCH_MODULES = ("torch.optim.", "torch.nn.modules.", "torch.nn.functional.")

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
# Real checkpoints have some ten thousand, and with the state of an optimizer some hundred thousand.
MAX_OPERATIONS = 2_000_000
MAX_DEPTH = 100
MAX_PARTS = 20_000_000
# Tensors may share a storage, as tied weights do.
MAX_VIEWS = 4
# The settings of a checkpoint have some thousand values.
MAX_SETTINGS = 100_000
_LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL_VERSION = 1001


class ForbiddenImportError(ValueError):
    """It is raised where a pickle asks for a class or function that no checkpoint needs."""


class ForeignCheckpointError(ValueError):
    """It is raised where a file would take more memory or time than its length warrants."""


class Placeholder:
    """A placeholder stands for an object of a class that is not imported; it only records the pickle's data.

    Attributes:
        qualified_name: module and name of the class it stands for.
        args: positional arguments that the class or function would have been called with.
        state: what the object's `__setstate__` would have been given, or `None`.
        entries: key/value pairs, where the class is a mapping.
        elements: items, where the class is a sequence or a set.
    """

    qualified_name = ""
    args: tuple
    state: Any
    entries: dict
    elements: list

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        self = super().__new__(cls)
        self.args = args
        self.state = None
        self.entries = {}
        self.elements = []
        return self

    def __repr__(self) -> str:
        return f"<placeholder of {self.qualified_name}>"

    # The unpickler calls these on an object, for its opcodes BUILD, SETITEMS, APPENDS and ADDITEMS.
    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, element: Any) -> None:
        self.elements.append(element)

    def extend(self, elements: Any) -> None:
        self.elements.extend(elements)

    def add(self, element: Any) -> None:
        self.elements.append(element)


class _Call:
    """A function of ours that a pickle may call; the attributes of a bare function could be set by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ForbiddenImportError("the pickle tries to change a function")


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)  # bounds are checked by torch


def _rebuild_tensor_of_dtype(
    storage: torch.Tensor, offset: int, size: tuple, stride: tuple, _grad: Any, _hooks: Any, dtype: torch.dtype, *_: Any
) -> torch.Tensor:
    return storage.view(dtype).as_strided(tuple(size), tuple(stride), offset)


def _bytes_of_text(text: str, encoding: str) -> bytes:
    # Protocol 2 writes bytes this way. Another encoding would make Python import a codec.
    if encoding != "latin1":
        raise ForbiddenImportError(f"the pickle asks for the codec {encoding!r}")
    return text.encode("latin1")


def _bytearray(*args: Any) -> bytearray:
    # A number would ask for so many bytes.
    if any(isinstance(arg, int) for arg in args):
        raise ForbiddenImportError(f"the pickle asks for a bytearray of {args[0]} bytes")
    return bytearray(*args)


_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _Call(_bytes_of_text),
    ("builtins", "bytearray"): _Call(_bytearray),
    ("builtins", "complex"): complex,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    # The factory of a defaultdict would be an import that the file asks for, so a plain dict stands in.
    ("collections", "defaultdict"): _Call(lambda *_: {}),
    ("torch", "Size"): _Call(tuple),
    ("torch", "device"): _Call(lambda *args: ":".join(map(str, args))),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
    ("torch._utils", "_rebuild_parameter_with_state"): _Call(lambda tensor, *_: tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(_rebuild_tensor_of_dtype),
}


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing on behalf of the file.

    Args:
        file: where the pickle starts.
        load_storage: `(dtype, key, number of elements) -> 1-D tensor`, or `None` where no tensor may occur.
    """

    def __init__(self, file: IO[bytes], load_storage: Callable[[torch.dtype, str, int], torch.Tensor] | None = None):
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage
        self._placeholders: dict[tuple[str, str], type[Placeholder]] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # protocol 2 writes the names of Python 2
        if (module, name) in _ALLOWED_GLOBALS:
            return _ALLOWED_GLOBALS[module, name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        package = module.partition(".")[0]
        inert = (
            package in _INERT_PACKAGES
            or package.startswith("fairseq_user_dir")
            or (module + ".").startswith(_INERT_TORCH_MODULES)
            or (module == "builtins" and name in _INERT_BUILTINS)
        )
        if not inert:
            raise ForbiddenImportError(f"it asks to import {module}.{name}, which no checkpoint needs")
        if (module, name) not in self._placeholders:
            self._placeholders[module, name] = type(
                "Placeholder", (Placeholder,), {"qualified_name": f"{module}.{name}"}
            )
        return self._placeholders[module, name]

    def persistent_load(self, saved_id: Any) -> torch.Tensor:
        if self._load_storage is None or not isinstance(saved_id, tuple) or saved_id[:1] != ("storage",):
            raise ForbiddenImportError(f"it asks for the outside object {str(saved_id)[:60]}")
        _, dtype, key, _location, num_elements, *view = saved_id
        storage = self._load_storage(dtype, key, num_elements)
        if view and view[0] is not None:
            _view_key, offset, size = view[0]
            storage = storage[offset : offset + size]
        return storage


def _opcodes(file: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield the opcodes of the pickle that starts here, with their arguments."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            yield opcode, argument
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from error


def _scan(file: IO[bytes], size: int) -> set[str]:
    """Follow the opcodes of the pickle that starts here without building anything, and refuse what would not end.

    Args:
        file: where the pickle starts; afterwards behind it.
        size: the largest length of the pickle.

    Returns:
        the short texts in it, among them all names that it may import.

    Raises:
        ForeignCheckpointError: it has too many opcodes, a memo position beyond its length, or is nested too deeply.
    """
    texts: set[str] = set()
    num_parts = 0
    # The depth and the number of parts of every object on the stack and in the memo; `None` is a mark.
    stack: list[tuple[int, int] | None] = []
    memo: dict[int, tuple[int, int]] = {}
    for count, (opcode, argument) in enumerate(_opcodes(file)):
        name = opcode.name
        if count >= MAX_OPERATIONS:
            raise ForeignCheckpointError(f"its pickle has more than {MAX_OPERATIONS} opcodes")
        if isinstance(argument, str) and len(argument) < 200:
            texts.update(argument.split())
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            position = len(memo) if name == "MEMOIZE" else argument
            if not isinstance(position, int) or not 0 <= position <= size:
                raise ForeignCheckpointError(f"its pickle has the memo position {position} in {size} bytes")
            memo[position] = (stack[-1] if stack else None) or (0, 1)
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(argument or 0), (0, 1)))
            continue
        if name == "DUP":
            stack.append(stack[-1] if stack else (0, 1))
            continue
        parts: list[tuple[int, int]] = []
        for kind in reversed(opcode.stack_before):
            if kind is pickletools.markobject:
                while stack and (part := stack.pop()) is not None:
                    parts.append(part)
            elif kind is not pickletools.stackslice and stack:
                parts.append(stack.pop() or (0, 1))
        made = (1 + max((depth for depth, _ in parts), default=-1), 1 + sum(size for _, size in parts))
        num_parts += made[1]
        if made[0] > MAX_DEPTH or num_parts > MAX_PARTS:
            raise ForeignCheckpointError(
                f"its pickle nests objects deeper than {MAX_DEPTH} levels, or repeats them more than {MAX_PARTS} times"
            )
        # What a list or dict takes up is no part of any hash, and is counted where it is used.
        grows = name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD", "LIST", "DICT")
        for kind in opcode.stack_after:
            is_mark = kind is pickletools.markobject
            stack.append(None if is_mark else (0, 1) if grows else made)
    return texts


def _scan_archive(path: Path) -> set[str]:
    """Check all of an archive that can be checked without building an object; return the texts of its pickle."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ForeignCheckpointError("its archive is compressed, which `torch.save` never does")
        if sum(entry.file_size for entry in entries) > size:
            raise ForeignCheckpointError("its archive promises more bytes than the file has")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        return set().union(*(_scan(io.BytesIO(archive.read(entry)), entry.file_size) for entry in pickles))


def _check_tensors(checkpoint: Any, file_size: int) -> None:
    """Refuse tensors that are larger than their storage, and all together much larger than the file."""
    total, seen = 0, set()
    waiting = [checkpoint]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise ForeignCheckpointError(f"it holds a tensor of another kind than weights have ({value.layout})")
            num_bytes = value.numel() * value.itemsize
            if num_bytes > value.untyped_storage().nbytes():
                raise ForeignCheckpointError(f"it holds a tensor of {num_bytes} bytes that repeats a smaller storage")
            total += num_bytes
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, Placeholder):
            waiting += [value.args, value.state, value.entries, value.elements]
    if total > MAX_VIEWS * file_size:
        raise ForeignCheckpointError(f"its tensors have {total} bytes together, but the file has {file_size}")


def _read_zip(path: Path) -> Any:
    """Read the format of `torch.save` since PyTorch 1.6: a zip archive of one pickle and one file for each storage."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"a zip archive with {len(pickles)} files data.pkl instead of one")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise ValueError("a TorchScript archive, which is a program and not a file of weights")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
        if order != sys.byteorder:
            raise ValueError(f"byte order {order!r} on a {sys.byteorder!r} endian machine")
        storages: dict[str, torch.Tensor] = {}

        def load_storage(dtype: torch.dtype, key: str, num_elements: int) -> torch.Tensor:
            if key not in storages:
                content = bytearray(archive.read(f"{root}data/{key}"))
                storages[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
            return storages[key].view(dtype)

        with archive.open(pickles[0]) as file:
            return _RestrictedUnpickler(file, load_storage).load()


def _read_legacy(path: Path) -> Any:
    """Read the format before PyTorch 1.6.

    Pickles follow one another (magic number, version, system, object, storage keys), and then the storages, each an
    int64 count and its elements.
    """
    file_size = path.stat().st_size
    storages: dict[str, torch.Tensor] = {}

    def load_storage(dtype: torch.dtype, key: str, num_elements: int) -> torch.Tensor:
        if key not in storages:
            others = sum(storage.nbytes for storage in storages.values())
            if not 0 <= num_elements * dtype.itemsize <= file_size - others:
                raise EOFError(f"storage {key} is larger than the file")
            storages[key] = torch.empty(num_elements, dtype=dtype)  # filled below
        return storages[key]

    def load(reader: Callable[[torch.dtype, str, int], torch.Tensor] | None = None) -> Any:
        start = file.tell()
        _scan(file, file_size)
        file.seek(start)
        return _RestrictedUnpickler(file, reader).load()

    with path.open("rb") as file:
        if load() != _LEGACY_MAGIC_NUMBER:
            raise ValueError("a pickle that `torch.save` did not write")
        if load() != _LEGACY_PROTOCOL_VERSION:
            raise ValueError("an unknown version of the format before PyTorch 1.6")
        load()
        checkpoint = load(load_storage)
        for key in load():
            storage = storages[key]
            num_elements = int.from_bytes(file.read(8), "little", signed=True)
            content = bytearray(file.read(storage.nbytes))
            if num_elements != storage.numel() or len(content) != storage.nbytes:
                raise EOFError(f"storage {key} ends early")
            if content:
                storage.copy_(torch.frombuffer(content, dtype=storage.dtype))
    return checkpoint


def _read(path: Path, is_zip: bool) -> Any:
    """Read the file with PyTorch's own reader of weights where that can be bounded, and with ours otherwise."""
    if not is_zip:
        return _read_legacy(path)  # PyTorch trusts the sizes in files of this format
    if "bytearray" not in _scan_archive(path):  # of which PyTorch makes one of any length
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # what is wrong is found again below, where the message is our own
            pass
    return _read_zip(path)


def load_foreign_checkpoint(path: str | Path) -> Any:
    """Read a file written by `torch.save`, on the CPU, without executing anything that it asks for.

    Args:
        path: a `.pt`, `.ckpt` or `.bin` file, in the zip format or the one before PyTorch 1.6.

    Returns:
        The saved object. Where PyTorch's own `weights_only` reader refuses the file, objects of known libraries
        (omegaconf, argparse, fairseq, lightning, ...) are [`Placeholder`]s; see [`to_plain`].

    Raises:
        OSError: the file is missing, empty, truncated or damaged.
        ValueError: the file is no PyTorch checkpoint, asks to import something that no checkpoint needs, or would take
            more memory or time than its length warrants, see above.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"The checkpoint {path} does not exist.")
    if not path.is_file():
        raise IsADirectoryError(f"The checkpoint must be a file, but {path} is a directory.")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise OSError(f"The checkpoint {path} is empty.")
    is_zip = head == b"PK\x03\x04"
    if not is_zip and head[:1] != b"\x80":
        raise ValueError(f"{path} is no PyTorch checkpoint: it starts with {head!r}.")
    try:
        checkpoint = _read(path, is_zip)
        _check_tensors(checkpoint, path.stat().st_size)
        return checkpoint
    except ForeignCheckpointError as error:
        raise ForeignCheckpointError(f"{path} is refused: {error}.") from None
    except ForbiddenImportError as error:
        raise ForbiddenImportError(f"{path} is refused: {error}.") from None
    except (EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise OSError(f"The checkpoint {path} is truncated or damaged: {error}.") from None
    except OSError:
        raise
    except Exception as error:  # a crafted pickle can raise anything
        raise ValueError(f"{path} is no PyTorch checkpoint: {error}.") from None


def to_plain(value: Any, max_depth: int = 50) -> Any:
    """Turn settings into dicts and lists, by unwrapping the placeholders of omegaconf and of `argparse.Namespace`.

    A placeholder of any other class is left as it is.

    Raises:
        ValueError: more than `max_depth` levels, as in a structure that contains itself, or than `MAX_SETTINGS` values.
    """
    return _plain(value, max_depth, iter(range(MAX_SETTINGS)))


def _plain(value: Any, max_depth: int, budget: Iterator[int]) -> Any:
    if max_depth == 0:
        raise ValueError("The settings of a checkpoint are nested too deeply.")
    if next(budget, None) is None:
        raise ValueError(f"The settings of a checkpoint have more than {MAX_SETTINGS} values.")
    if isinstance(value, Placeholder):
        state = value.state if isinstance(value.state, Mapping) else {}
        if "_content" in state:  # omegaconf DictConfig and ListConfig
            return _plain(state["_content"], max_depth - 1, budget)
        if "_val" in state:  # omegaconf AnyNode, IntegerNode, ...
            return _plain(state["_val"], max_depth - 1, budget)
        if value.qualified_name == "argparse.Namespace":
            return _plain(state, max_depth - 1, budget)
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, max_depth - 1, budget) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, max_depth - 1, budget) for item in value]
    return value
