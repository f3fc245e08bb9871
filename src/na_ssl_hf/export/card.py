"""The README of an exported folder: what it is, how it is used, and the figures of its proof."""

from collections.abc import Mapping
from typing import Any

from .proof import Proof

_TEXT = """# Exported anomaly scorer

{model}, {precision}, as a graph for {runtime} from waveforms `(2, N)` at {rate} Hz (close microphone first) to band
vectors, with the memory of its normal recordings beside it. {length} Made with na-ssl-hf {made_with}.

```bash
pip install ./packages/na-ssl-edge
na-ssl-edge score EXPORTED recordings --csv scores.csv
```

A recording is anomalous above {threshold:.6g}; a higher score is more anomalous. {memory}

## Proof

{proof}
"""
_UNPROVEN = "This export was **not proven**: no recordings were given, so that nobody knows whether its scores stayed."
_PRECISIONS = {
    None: "float32",
    "weights": "int8 weights of the encoder, all arithmetic in float32",
    "products": "int8 matrix products of the encoder, the rest in float32",
}
_RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def card(settings: Mapping[str, Any], proof: Proof | None) -> str:
    """Return the text of the card.

    Args:
        settings: what `scorer.json` holds.
        proof: the figures; `None` where there were no recordings.
    """
    graph, is_int8 = settings["graph"], settings["graph"]["precision"] == "int8"
    num_samples = graph["num_samples"]
    return _TEXT.format(
        model=settings["model"],
        precision=_PRECISIONS[graph["quantised"]],
        runtime=_RUNTIMES[graph["format"]],
        rate=settings["recordings"]["sampling_rate"],
        length="Recordings may have any length." if num_samples is None else f"It takes {num_samples} samples only.",
        made_with=settings["made_with"]["na-ssl-hf"],
        threshold=settings["calibration"]["threshold"],
        memory=(
            "Memory and threshold were fitted anew with the quantised model."
            if is_int8
            else "Memory and threshold are those of the scorer."
        ),
        proof=_UNPROVEN if proof is None else _figures(proof),
    )


def _figures(proof: Proof) -> str:
    rows = [
        ("largest change of a score, share of the scores' spread", f"{proof.largest_change:.2e}"),
        ("median change of a score, share of the scores' spread", f"{proof.median_change:.2e}"),
        ("rank correlation", f"{proof.rank_correlation:.6f}"),
    ]
    if proof.auc is not None and proof.auc_before is not None:
        rows.append(("AUC of torch, of this export", f"{proof.auc_before:.4f}, {proof.auc:.4f}"))
    rows += [
        ("size of the graph / of the weights in float32", f"{proof.size_ratio:.2f}"),
        ("CPU time / torch's, one recording on one thread", f"{proof.time_ratio:.2f}"),
    ]
    labelled = f", and {proof.num_labelled} labelled ones" if proof.num_labelled else ", and no labelled ones"
    lines = [
        f"Against torch on {proof.num_normal} normal recordings, each scored by a memory of the others{labelled}.",
        "The spread is the 5 to 95 % range of torch's scores.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {figure} |" for name, figure in rows),
    ]
    return "\n".join(lines)
