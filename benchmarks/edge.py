"""Export: CPU time and size of na-ssl-edge with graphs in float32 and in 8 bits, beside torch.

    python -m benchmarks --only edge

The recordings are noise, so that nothing is said of scores: that is what `na-ssl export --prove` is for.
"""

import tempfile
from pathlib import Path

import torch
from transformers import pipeline

from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.export import ProofRecordings, export_scorer

from .measuring import NUM_SAMPLES, SEED, Row, alternate, progress

MODEL = "na-beats-tiny"
REPETITIONS = 7


def measure_edge() -> list[Row]:
    """Scores one recording of 10 s by the pipeline in torch and by na-ssl-edge, each on one thread."""
    from na_ssl_edge import Scorer

    generator = torch.Generator().manual_seed(SEED)
    noise = [0.05 * torch.randn(2, NUM_SAMPLES, generator=generator).numpy() for _ in range(4)]
    scorer = pipeline("anomaly-scoring", model=resolve_checkpoint(MODEL))
    scorer.fit(noise, threshold_method="quantile", progress=None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for precision, int8 in (("float32", None), ("int8", "weights")):
                progress(f"  exporting in {precision}")
                place = Path(folder) / precision
                exported = export_scorer(scorer, place, ProofRecordings(noise), int8=int8, max_drop=100.0)
                edge = Scorer(place, num_threads=1)
                ours, torchs = alternate(REPETITIONS, lambda edge=edge: edge(noise[0]), lambda: scorer(noise[0]))
                note = f"graph of {exported.proof.size_ratio:.2f} of the weights in float32" if exported.proof else ""
                what = f"{MODEL}: score of 10 s, ONNX {precision} against torch"
                target = "< 1.00" if int8 is None else "-"
                met = ours < torchs if int8 is None else None
                rows.append(Row(what, ours, torchs, f"{ours / torchs:.2f}", target, met, note=note))
    finally:
        torch.set_num_threads(threads)
    return rows


ITEMS = {"edge": measure_edge}
