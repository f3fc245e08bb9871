"""`na-ssl export`: a fitted scorer as a graph that scores without torch, with the proof that its scores stayed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data.sound_files import find_sound_files
from ..data.tables import file_named_in_table, read_columns
from .command_line import add_checkpoint_options, add_command
from .scoring import domains_of, groups_of, load_scorer

# What a table of labels may say of a recording.
LABELS = {"normal": False, "0": False, "anomaly": True, "anomalous": True, "1": True}


def add_commands(commands: Any) -> None:
    """Add `na-ssl export`."""
    parser = add_command(
        commands,
        "export",
        _export,
        "write a fitted scorer as a graph for na-ssl-edge, which needs no torch, and prove its scores",
        "  na-ssl export scorer exported --prove recordings/normal\n"
        "  na-ssl export scorer exported --int8 weights --prove recordings/normal --labels labels.csv --max-drop 0.5",
    )
    parser.add_argument("scorer", metavar="SCORER_DIR", help="directory that `na-ssl fit` wrote")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="directory of the export: new, or an earlier export")
    parser.add_argument(
        "--to", choices=("onnx", "openvino"), default="onnx", help="runtime of the graph (default: onnx)"
    )
    parser.add_argument(
        "--int8",
        nargs="?",
        const="weights",
        choices=("weights", "products"),
        help="8 bits for the weights of the encoder (default of the flag), or for its matrix products; memory and "
        "threshold are fitted anew with --prove",
    )
    proof = parser.add_mutually_exclusive_group(required=True)
    proof.add_argument(
        "--prove",
        nargs="+",
        type=Path,
        metavar="NORMAL",
        help="normal recordings for the proof, files or folders: best those that the scorer was fitted with",
    )
    proof.add_argument(
        "--no-proof", action="store_true", help="export without recordings; its card says that it is not proven"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="largest accepted drop of the AUC, or without labels of the rank correlation from 1 (default: 1)",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="CSV", help="table with the columns file and label (normal or anomaly)"
    )
    parser.add_argument("--normal", nargs="+", type=Path, metavar="FILES", help="further normal recordings for the AUC")
    parser.add_argument("--anomalous", nargs="+", type=Path, metavar="FILES", help="anomalous recordings for the AUC")
    parser.add_argument(
        "--domains", metavar="folder|REGEX", help="source or target for each recording of --prove, as for na-ssl fit"
    )
    parser.add_argument(
        "--groups", metavar="folder|REGEX", help="groups of the recordings of --prove, as for na-ssl fit"
    )
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="version of ONNX's operators (default: 18)")
    add_checkpoint_options(parser)
    parser.set_defaults(device="cpu")


def _export(options: argparse.Namespace) -> None:
    from ..export import ProofRecordings, export_scorer

    if options.out.is_file():
        raise FileExistsError(f"OUT_DIR must be a directory, got the file {options.out}")
    recordings = None
    if options.prove is not None:
        normal = find_sound_files(options.prove)
        labelled = _labelled(options)
        recordings = ProofRecordings(
            normal,
            domains=None if options.domains is None else domains_of(normal, options.domains),
            groups=None if options.groups is None else groups_of(normal, options.groups),
            labelled=list(labelled),
            is_anomalous=list(labelled.values()),
        )
    exported = export_scorer(
        load_scorer(options.scorer, options),
        options.out,
        recordings,
        to=options.to,
        int8=options.int8,
        max_drop=options.max_drop,
        opset=options.opset,
        progress="prove",
    )
    proof = exported.proof
    if proof is None:
        print(f"exported to {options.out}, not proven: no recordings were given")
        return
    print(
        f"exported to {options.out}, proven on {proof.num_normal} normal and {proof.num_labelled} labelled recordings"
    )
    print(
        f"largest change of a score: {proof.largest_change:.2e} of their spread, median {proof.median_change:.2e}; "
        f"rank correlation {proof.rank_correlation:.6f}"
    )
    if proof.auc is not None:
        print(f"AUC of torch {proof.auc_before:.4f}, of the export {proof.auc:.4f}")
    print(f"size {proof.size_ratio:.2f} of the weights in float32, CPU time {proof.time_ratio:.2f} of torch's")


def _labelled(options: argparse.Namespace) -> dict[Path, bool]:
    """Return the labelled recordings, and whether each is anomalous."""
    found: dict[Path, bool] = {}
    for paths, is_anomalous in ((options.normal, False), (options.anomalous, True)):
        if paths is not None:
            found |= dict.fromkeys(find_sound_files(paths), is_anomalous)
    if options.labels is not None:
        for line, row in read_columns(options.labels, {"file", "label"}):
            label = row.get("label", "").lower()
            if label not in LABELS:
                raise ValueError(f"{options.labels}, line {line}: label must be one of {list(LABELS)}, got {label!r}")
            found[file_named_in_table(options.labels.parent, row["file"])] = LABELS[label]
    return found
