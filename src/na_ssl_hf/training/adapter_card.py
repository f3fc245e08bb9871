"""The model card of a discriminatively fine-tuned model or adapter, written from its training log."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .pseudo_labels import LabelMap

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ kind }} `{{ base }}` ({{ model_type }}), trained to tell {{ num_classes }} classes of
{{ num_clips }} normal machine recordings apart (Fujimura et al., DCASE 2026 Task 2). Anomaly scores come from its
tokens; the head and the loss of the training are not part of it.

```python
import na_ssl_hf  # registers models and pipeline with transformers
from transformers import pipeline

scorer = pipeline("anomaly-scoring", model="{{ name }}"){{ needs }}
scorer.fit(normal_recordings)
```

## Measured

Measured on {{ watched }}, after each epoch. Nothing was selected by these numbers, and no anomaly was used.
The leave-one-out variance is that of the anomaly scores of normal clips against one another, mean over machines.

| step | class accuracy | loss | leave-one-out variance |
|---|---|---|---|
{{ rows }}

## Trained by

```sh
{{ command }}
```

It took {{ hours }} h of steps on {{ processes }}. `label_map.json` says which clip belongs to which class.
"""


def write_adapter_card(
    folder: Path,
    *,
    model_type: str,
    base: str,
    licence: str,
    label_map: LabelMap,
    log: Sequence[Mapping[str, Any]],
    held_out: bool,
    num_processes: int,
    command: str,
    is_adapter: bool = True,
) -> None:
    """Write `folder/README.md`.

    Args:
        base: the name of the base; a name on the hub also goes into the metadata.
        licence: the licence of the adapter, a hub identifier.
        log: the rows of the training log.
        is_adapter: whether the folder holds an adapter, or all weights of a model.
        held_out: whether the clips that were measured were kept from training.
    """
    base_on_hub = base if base.count("/") == 1 and not Path(base).exists() else None
    metadata = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="audio-classification",
        license=licence,
        base_model=base_on_hub,
        tags=["audio", "anomaly-detection", *(["lora"] if is_adapter else []), model_type],
    )
    columns = ("step", "validation/accuracy", "validation/loss", "validation/leave_one_out_variance")
    measured = [[row[column] for column in columns] for row in log if columns[1] in row]
    card = ModelCard.from_template(
        metadata,
        template_str=_TEMPLATE,
        name=folder.name,
        kind="A low-rank adapter of" if is_adapter else "All weights of",
        needs="  # needs peft" if is_adapter else "",
        base=base_on_hub or Path(base).name,
        model_type=model_type,
        num_classes=len(label_map.classes),
        num_clips=sum(len(members) for members in label_map.classes.values()),
        watched="clips kept from training" if held_out else "all clips, which were also trained on",
        rows="\n".join(f"| {step} | {acc:.3f} | {loss:.3f} | {var:.3g} |" for step, acc, loss, var in measured),
        command=command,
        hours=f"{sum(row.get('s', 0) for row in log) / 3600:.2f}",
        processes="one process" if num_processes == 1 else f"{num_processes} processes",
    )
    card.save(folder / "README.md")
