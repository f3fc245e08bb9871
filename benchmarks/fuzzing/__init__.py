"""Inputs of every kind, whole, odd and damaged, for the fuzz suite and for the long run of `make fuzz`."""

from .arguments import bank_arguments, pooling_arguments, scorer_arguments, window_arguments
from .foreign_files import archive, attribute_table, foreign_checkpoint, manifest, submission
from .saved_files import bank_file, checkpoint, room_pool
from .sounds import recording, sound_file
from .trial import Draw

KINDS: dict[str, Draw] = {
    "sound files": sound_file,
    "recordings": recording,
    "arguments of a bank": bank_arguments,
    "arguments of a pooling": pooling_arguments,
    "arguments of windows": window_arguments,
    "arguments of a scorer": scorer_arguments,
    "memory bank files": bank_file,
    "room pools": room_pool,
    "checkpoints": checkpoint,
    "submissions": submission,
    "attribute tables": attribute_table,
    "manifests": manifest,
    "archives": archive,
    "checkpoints of others": foreign_checkpoint,
}
