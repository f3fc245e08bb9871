"""Conversion of EfficientAT checkpoints: the AudioSet MobileNets of Schmid et al. (ICASSP 2023), and fine-tuned ones.

The files are flat state dicts. Width, head and number of classes show in the shapes. Hop, mel bins and strides leave no
trace there: only the name of the file has them.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from na_ssl_hf.convert.foreign_pickle import load_foreign_checkpoint
from na_ssl_hf.convert.weights import Weights, require_shape, require_tensors
from na_ssl_hf.convert.write import refuse_destination, write_model
from na_ssl_hf.hub.configuration_efficientat import block_sizes, classifier_channels, last_channels, stem_channels
from na_ssl_hf.hub.mel_spectrogram import EFFICIENTAT_HOP, EFFICIENTAT_MEL_BINS, EFFICIENTAT_RATE

# The names and the order of the classes are Google's (AudioSet), CC BY 4.0, see the header of the file.
LABELS_FILE = "audioset_labels.csv"
NUM_AUDIOSET_CLASSES = 527
NUM_IMAGENET_CLASSES = 1000

# The published widths, then the others that the authors' training script could have been given, roundest first.
_PUBLISHED_WIDTHS = (0.1, 0.2, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0)
_WIDTHS = tuple(
    dict.fromkeys([*_PUBLISHED_WIDTHS, *(n / 10 for n in range(1, 101)), *(n / 100 for n in range(1, 1001))])
)
_STEM, _LAST = "features.0.0.weight", "features.16.0.weight"
_NUM_BLOCKS = 15
_DEFAULT_STRIDES = "2222"
# ImageNet weights are called mn10_im.pt; mn40_as_no_im_pre_mAP_483.pt was trained on AudioSet.
_IMAGENET_NAME = re.compile(r"mn\d+_im(?![a-z])")
_DYNAMIC_NAME = re.compile(r"(layers\.\d+|in_c|out_c)\.|.*\.(residuals|context_gen|lambdas|coef_net)(\.|$)")


@dataclass(frozen=True)
class Spectrogram:
    """What a file's tensors do not say.

    Attributes:
        hop: time from frame to frame, in ms.
        mels: number of mel bins.
        strides: the four strides of the network, as four digits.
    """

    hop: float = 1000 * EFFICIENTAT_HOP / EFFICIENTAT_RATE
    mels: int = EFFICIENTAT_MEL_BINS
    strides: str = _DEFAULT_STRIDES

    @property
    def settings(self) -> dict[str, object]:
        """The fields of the configuration.

        Raises:
            ValueError: the hop is no whole number of samples, or the strides are no four digits.
        """
        hop_length = self.hop * EFFICIENTAT_RATE / 1000
        if not hop_length > 0 or hop_length != int(hop_length):
            raise ValueError(f"`hop` must be a whole number of samples at 32 kHz, got {self.hop!r} ms.")
        if not re.fullmatch(r"[12]{4}", self.strides):
            raise ValueError(f"`strides` must be four digits, each 1 or 2, such as 2222, got {self.strides!r}.")
        if self.mels < 1:
            raise ValueError(f"`mels` must be at least 1, got {self.mels!r}.")
        strides = tuple(int(digit) for digit in self.strides)
        return {"hop_length": int(hop_length), "num_mel_bins": self.mels, "strides": strides}


def spectrogram_of(
    name: str, hop: float | None = None, mels: int | None = None, strides: str | None = None
) -> Spectrogram:
    """Read hop, mel bins and strides from the name of a file; what is given counts instead.

    Without a hint they are 10 ms, 128 and 2222, those of the published files whose names say nothing.
    """
    found = {
        key: match[1]
        for key, pattern in (("hop", r"_hop_(\d+)"), ("mels", r"_mels_(\d+)"), ("strides", r"_s([12]{4})"))
        if (match := re.search(pattern + r"(?=_|\.|$)", name))
    }
    default = Spectrogram()
    return Spectrogram(
        hop=float(found.get("hop", default.hop)) if hop is None else hop,
        mels=int(found.get("mels", default.mels)) if mels is None else mels,
        strides=found.get("strides", default.strides) if strides is None else strides,
    )


def audioset_labels() -> list[str]:
    """Read the display names of the 527 classes of AudioSet (Gemmeke et al., ICASSP 2017), in their order."""
    text = files("na_ssl_hf.convert").joinpath(LABELS_FILE).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [row["display_name"] for row in csv.DictReader(lines)]


def read_efficientat(source: str | Path, spectrogram: Spectrogram) -> Weights:
    """Read a checkpoint of the authors' code.

    Raises:
        OSError: the file is missing, truncated or damaged.
        ValueError: the file is of another kind, or was trained on pictures.
    """
    settings = spectrogram.settings
    checkpoint = load_foreign_checkpoint(source)
    tensors = require_tensors(checkpoint, source, "The content")
    if any(_DYNAMIC_NAME.match(name) for name in tensors):
        raise ValueError(
            f"{source} is a dynamic MobileNet (dymn), whose blocks are of another kind: only the ordinary ones of "
            "EfficientAT (mn) can be converted."
        )
    head, num_classes = _head(tensors, source)
    _refuse_pictures(tensors, head, num_classes, source)
    settings |= {"width": _width(tensors, head, source), "head": head, **_label_settings(num_classes)}
    return Weights(settings, dict(_renamed(tensors)))


def _head(tensors: Mapping[str, torch.Tensor], source: str | Path) -> tuple[str, int]:
    """Find the kind of the head and its number of classes."""
    if "classifier.0.weight" in tensors:
        return "fc", require_shape(tensors, "classifier.0.weight", 4, source)[0]
    return "mlp", require_shape(tensors, "classifier.5.weight", 2, source)[0]


def _refuse_pictures(tensors: Mapping[str, torch.Tensor], head: str, num_classes: int, source: str | Path) -> None:
    """Raise a ValueError where the weights are those of ImageNet, with which the authors' training begins."""
    bias = tensors.get("classifier.5.bias") if head == "mlp" else None
    if num_classes == NUM_IMAGENET_CLASSES:
        sign = f"{NUM_IMAGENET_CLASSES} classes"
    elif _IMAGENET_NAME.match(Path(source).name):
        sign = "its name"
    elif bias is not None and not bias.any():
        sign = "a classifier that was not trained"
    else:
        return
    raise ValueError(f"{source} must be trained on sounds, got weights of pictures (ImageNet), as {sign} shows.")


def _width(tensors: Mapping[str, torch.Tensor], head: str, source: str | Path) -> float:
    """Find the width whose numbers of channels are those of the tensors."""
    stem = require_shape(tensors, _STEM, 4, source)[0]
    last = require_shape(tensors, _LAST, 4, source)[0]
    found = {"the stem": stem, "the last map": last}
    if head == "mlp":
        found["the classifier"] = require_shape(tensors, "classifier.2.weight", 2, source)[0]
    channels_of = {"the stem": stem_channels, "the last map": last_channels, "the classifier": classifier_channels}
    widths = [width for width in _WIDTHS if all(channels_of[name](width) == found[name] for name in found)]
    if not widths:
        got = ", ".join(f"{count} in {name}" for name, count in found.items())
        raise ValueError(f"{source} must have the channels of one width of MobileNetV3, got {got}.")

    # Neighbouring widths differ in some blocks only.
    def num_equal(width: float) -> int:
        return sum(
            tensors[name].shape[:1] == (sizes.expanded_channels,)
            for index, sizes in enumerate(block_sizes(width), start=1)
            if (name := f"features.{index}.block.0.0.weight") in tensors
        )

    return max(widths, key=num_equal)


def _label_settings(num_classes: int) -> dict[str, object]:
    """Say what the classes mean, where their number tells it; fine-tuned ones are without names."""
    if num_classes != NUM_AUDIOSET_CLASSES:
        return {"num_labels": num_classes}
    names = audioset_labels()
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "multi_label_classification",
    }


def _renamed(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors under our names; what we have no name for keeps its own, and is refused by it later."""
    parts = {"0": "convolution", "1": "norm"}
    for name, tensor in tensors.items():
        ours = name
        if match := re.fullmatch(r"features\.(0|16)\.([01])\.(.+)", name):
            where = "stem" if match[1] == "0" else f"layers.{_NUM_BLOCKS}.projection"
            ours = f"efficientat.{where}.{parts[match[2]]}.{match[3]}"
        elif match := re.fullmatch(r"features\.(\d+)\.block\.(\d+)\.(.+)", name):
            names = _block_parts(tensors, f"features.{match[1]}.block.")
            rest = re.sub(r"^conc_se_layers\.0\.", "", match[3]) if names.get(match[2]) == "gate" else match[3]
            if conv := re.fullmatch(r"([01])\.(.+)", rest):
                rest = f"{parts[conv[1]]}.{conv[2]}"
            if match[2] in names:
                ours = f"efficientat.layers.{int(match[1]) - 1}.{names[match[2]]}.{rest}"
        elif match := re.fullmatch(r"classifier\.(\d)\.(.+)", name):
            places = {"2": "fc1", "5": "fc2"} if "classifier.5.weight" in tensors else parts
            ours = f"classifier.{places.get(match[1], match[1])}.{match[2]}"
        yield ours, tensor


def _block_parts(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, str]:
    """Name the places of a block: a missing expansion or gate shifts the places behind it."""
    places = sorted({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})
    gated = [place for place in places if f"{prefix}{place}.conc_se_layers.0.fc1.weight" in tensors]
    kinds: Sequence[str] = ["expansion", "depthwise", *(["gate"] if gated else []), "projection"]
    return dict(zip(places, kinds[max(0, len(kinds) - len(places)) :], strict=False))


def convert_efficientat(
    source: str | Path,
    destination: str | Path,
    *,
    hop: float | None = None,
    mels: int | None = None,
    strides: str | None = None,
) -> Path:
    """Convert an EfficientAT checkpoint into a directory for `from_pretrained`.

    `AutoModel` loads the encoder from it and `AutoModelForAudioClassification` the encoder with its head. The feature
    extractor resamples, since few recordings of machines have 32 kHz.

    Args:
        source: a file of the authors' release v0.0.1, or one that their scripts fine-tuned.
        destination: a directory that does not exist yet, or is empty.
        hop, mels, strides: time from frame to frame in ms, number of mel bins, and the four strides as digits; `None`
            reads them from the name of the file (`_hop_5`, `_mels_40`, `_s2221`), and takes 10 ms, 128 and 2222 where
            it says nothing.

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, or its weights do not fit. Nothing is written in either case.
    """
    refuse_destination(destination)
    spectrogram = spectrogram_of(Path(source).name, hop, mels, strides)
    return write_model("efficientat", read_efficientat(source, spectrogram), destination, source)
