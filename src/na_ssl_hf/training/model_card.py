"""The model card of a distilled model, written from its training log, its settings and its sounds."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..data.corpora.manifest import SoundFile
from ..hub.modeling_noise_aware import NoiseAwareModelMixin

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ architecture }} {{ origin }}, distilled on simulated
two-channel mixtures to give the base's tokens of the clean close recording (Fujimura et al., IWAENC and DCASE 2026).

```python
import na_ssl_hf  # registers the model with transformers
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("{{ name }}")
extractor = AutoFeatureExtractor.from_pretrained("{{ name }}")
features = extractor(recording, sampling_rate=16000)  # recording: (2, samples), close first
tokens = model(**features).last_hidden_state
```

## Measured

After {{ step }} steps, on {{ num_validation }} mixtures of validation sounds in validation rooms. A ratio is a mean
squared error divided by that of the base itself on the same input, so that 1 is an untrained model.

| | |
|---|---|
{{ results }}

![loss](loss.png)

## Trained by

```sh
{{ command }}
```

It took {{ hours }} h of steps on {{ processes }}, {{ cpu_hours }} CPU hours of the main process.
Settings: {{ settings }}.

## Data

| use | split | corpus | licence | files | minutes |
|---|---|---|---|---|---|
{{ data }}
"""

_PATHS = ("base", "targets", "noises", "rooms", "validation_rooms", "output_dir", "resume")


def launch_command(arguments: Sequence[str]) -> str:
    """Return the shell command that repeats a training.

    Args:
        arguments: `sys.argv` of the training; `na-ssl train` leaves the whole name of its command in the first place.
    """
    program, *options = arguments
    if program.startswith("na-ssl "):
        return shlex.join(["accelerate", "launch", "-m", "na_ssl_hf.cli", *program.split()[1:], *options])
    return shlex.join(["accelerate", "launch", program, *options])


def write_model_card(
    folder: Path,
    *,
    name: str,
    model: NoiseAwareModelMixin,
    base: str,
    licence: str,
    step: int,
    num_validation: int,
    results: Mapping[str, float],
    log: Sequence[Mapping[str, Any]],
    num_processes: int,
    command: str,
    settings: Mapping[str, Any],
    sounds: Mapping[str, Sequence[SoundFile]],
) -> None:
    """Write `folder/README.md`.

    Args:
        model: the noise-aware model.
        base: folder or name of the plain base, or of the noise-aware model from which training went on; a name on the
            hub also goes into the metadata.
        licence: the licence of the weights, a hub identifier.
        results: the results of the last validation.
        log: the rows of the training log, with the seconds of every step.
        settings: the settings of the training; its paths are not written, since the command holds them.
        sounds: the sounds by their use, such as "target" and "noise".
    """
    goes_on = AutoConfig.from_pretrained(base).model_type == model.config.model_type
    origin = "from the noise-aware model" if goes_on else "around the frozen base"
    base_on_hub = base if base.count("/") == 1 and not Path(base).exists() else None
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="audio-classification",
        license=licence,
        base_model=base_on_hub,
        tags=["audio", "anomaly-detection", "two-channel", model.config.model_type],
        eval_results=[
            EvalResult(
                task_type="feature-extraction",
                dataset_type="simulated-two-channel-mixtures",
                dataset_name="simulated two-channel mixtures, validation rooms and sounds",
                metric_type=metric,
                metric_value=round(value, 4),
            )
            for metric, value in results.items()
        ],
    )
    card = ModelCard.from_template(
        metadata,
        template_str=_TEMPLATE,
        name=name,
        origin=f"{origin} `{base_on_hub or Path(base).name}`",
        architecture=f"{model.config.model_type}, {model.config.noise_aware_layer_type} layers,",
        step=step,
        num_validation=num_validation,
        results="\n".join(f"| {metric.replace('_', ' ')} | {value:.4f} |" for metric, value in results.items()),
        command=command,
        hours=f"{sum(row.get('s', 0) for row in log) / 3600:.2f}",
        cpu_hours=f"{sum(row.get('cpu_s', 0) for row in log) / 3600:.2f}",
        processes="one process" if num_processes == 1 else f"{num_processes} processes",
        settings=", ".join(
            f"{setting} {value}"
            for setting, value in settings.items()
            if setting not in _PATHS and value not in (None, False)
        ),
        data=_data_rows(sounds),
    )
    card.save(folder / "README.md")


def _data_rows(sounds: Mapping[str, Sequence[SoundFile]]) -> str:
    counts: Counter[tuple[str, ...]] = Counter()
    seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for use, files in sounds.items():
        for sound in set(files):  # a manifest may name a sound several times, to have it drawn more often
            row = (use, sound.split, sound.corpus, sound.licence or "not stated")
            counts[row] += 1
            seconds[row] += sound.num_frames / sound.sampling_rate
    return "\n".join(f"| {' | '.join(row)} | {counts[row]} | {seconds[row] / 60:.1f} |" for row in sorted(counts))
