"""The whole chain of a scorer as one module: waveforms of both microphones to band vectors.

Letters: B recordings, N samples, F frequency bands, D channels.
"""

import copy

import torch
from torch import nn

from ..hub.front_end import TwoChannelFrontEnd
from ..hub.input_level import at_level
from ..hub.layer_choice import LayerChoice
from ..hub.model_weights import has_adapter, merge_adapter
from ..hub.pipeline_anomaly_scoring import AnomalyScorer
from ..hub.pooling import Pooling
from ..hub.threshold import Calibration


class FrontEnd(nn.Module):
    """The log-mel frames as a module, so that the names of its nodes tell a quantiser to leave them in float."""

    def __init__(self, front_end: TwoChannelFrontEnd):
        super().__init__()
        self._front_end = front_end
        # Constants that are first made during an export would be placeholders, there and ever after. An empty batch
        # makes those of the exported arithmetic.
        front_end.fbank(torch.zeros(0, 2, 4 * front_end.min_samples))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Turn `(B, 2, N)` into log-mel frames `(B, 2, T, M)`."""
        return self._front_end.fbank(waveforms)


class ScoringChain(nn.Module):
    """Level, front end, encoder, chosen layers and pooling of a fitted scorer, on the CPU and in float32.

    Args:
        scorer: a fitted scorer; its model is copied, with an adapter merged into it.
        calibration: what the scorer's memory holds.

    Raises:
        ValueError: the scorer cancels the far microphone in a way that has no exportable form.
    """

    def __init__(self, scorer: AnomalyScorer, calibration: Calibration):
        super().__init__()
        check_far_cancellation(scorer)
        model = copy.deepcopy(scorer.model)
        model = (merge_adapter(model) if has_adapter(model) else model).cpu().float().eval()
        self.front_end = FrontEnd(scorer.feature_extractor.front_end)
        self.model = model
        if calibration.streams != "cancelled":
            raise ValueError(
                f"`scorer` must be fitted with streams='cancelled' for an export, got {calibration.streams!r}."
            )
        self._level = calibration.level
        self._layers = LayerChoice(calibration.layers)
        self._pooling = Pooling(**calibration.pooling)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Turn waveforms `(B, 2, N)` float32 at the extractor's rate into band vectors `(B, F, D)` float32."""
        return self._layers.vectors(self.model, self.front_end(at_level(waveforms, self._level)), self._pooling)


def check_far_cancellation(scorer: AnomalyScorer) -> None:
    """Raise a ValueError where the far microphone is cancelled in a way that has no exportable form."""
    far_microphone, method = scorer.far_microphone, scorer.feature_extractor.far_cancellation
    if far_microphone is not None and far_microphone.method_ != "none":
        method = far_microphone.method_
    if method is not None:
        raise ValueError(
            f"`far_cancellation` of an exported scorer must be none, got {method!r}: it uses complex spectra, which "
            "ONNX does not have. Fit the scorer without it, as noise-aware models do not need it."
        )
