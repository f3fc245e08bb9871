"""The whole chain of a scorer as one module: waveforms of both microphones to band vectors.

Letters: B recordings, N samples, F frequency bands, D channels.
"""

import copy
from functools import cache

import torch
from torch import nn

from ..hub.front_end import TwoChannelFrontEnd
from ..hub.input_level import at_level
from ..hub.layer_choice import LayerChoice
from ..hub.model_weights import has_adapter, has_quantised_weights, merge_adapter
from ..hub.pipeline_anomaly_scoring import AnomalyScorer
from ..hub.pooling import Pooling, log_mel_beside
from ..hub.streams import side_by_side, stream_vectors
from ..hub.threshold import Calibration
from .far_canceller import far_canceller


class FrontEnd(nn.Module):
    """The log-mel frames as a module, so that the names of its nodes tell a quantiser to leave them in float."""

    def __init__(self, front_end: TwoChannelFrontEnd):
        super().__init__()
        self._front_end = front_end
        # Constants that are first made during an export would be placeholders, there and ever after. An empty batch
        # makes those of the exported arithmetic.
        front_end.fbank(torch.zeros(0, 2, 4 * front_end.min_samples))

    def forward(self, waveforms: torch.Tensor, recorded: torch.Tensor | None = None) -> torch.Tensor:
        """Turn `(B, 2, N)` behind a canceller, and before it where there is one, into log-mel frames `(B, 2, T, M)`."""
        return self._front_end.frames(waveforms, waveforms if recorded is None else recorded)

    def num_sound_frames(self, num_samples: int) -> int:
        """Count the frames of `num_samples` that hold sound."""
        return self._front_end.num_sound_frames(num_samples)


class ScoringChain(nn.Module):
    """Level, cancellation of the far microphone, front end, encoder, chosen layers and pooling of a fitted scorer.

    All of it is on the CPU and in float32.

    Args:
        scorer: a fitted scorer; its model is copied, with an adapter merged into it.
        calibration: what the scorer's memory holds.

    Attributes:
        min_samples: the fewest samples per channel that it takes.

    Raises:
        ValueError: the weights of the model are quantised.
    """

    def __init__(self, scorer: AnomalyScorer, calibration: Calibration):
        super().__init__()
        if has_quantised_weights(scorer.model):
            raise ValueError(
                "`scorer` must have a model with weights in floating point, got quantised ones: load and fit it "
                "without quantising, and export with int8."
            )
        model = copy.deepcopy(scorer.model)
        self.front_end = FrontEnd(scorer.feature_extractor.front_end)
        self.far_canceller = None if calibration.streams == "raw" else far_canceller(scorer)
        self.model = (merge_adapter(model) if has_adapter(model) else model).cpu().float().eval()
        self._level, self._streams = calibration.level, calibration.streams
        self._layers = LayerChoice(calibration.layers)
        self._pooling = Pooling(**calibration.pooling)
        self._na_share, self._log_mel = calibration.na_share, calibration.log_mel
        least = 0 if self.far_canceller is None else self.far_canceller.min_samples
        self.min_samples = max(scorer.feature_extractor.front_end.min_samples, least)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Turn waveforms `(B, 2, N)` float32 at the extractor's rate into band vectors `(B, F, D)` float32."""
        waves = at_level(waveforms, self._level)

        @cache
        def of_stream(is_cancelled: bool) -> list[torch.Tensor]:
            fbank = self.front_end(self._cancelled(waves) if is_cancelled else waves, waves)  # (B, 2, T, M)
            vectors = self._layers.vectors(self.model, fbank, self._pooling, self._na_share)  # (B, F, D)
            if self._log_mel is None:
                return [vectors]
            return [vectors, log_mel_beside(vectors, fbank, self.front_end.num_sound_frames(waves.shape[-1]))]

        vectors = stream_vectors(self._streams, lambda: of_stream(True)[0], lambda: of_stream(False)[0])
        if self._log_mel is None:
            return vectors
        statistics = stream_vectors(
            self._streams, lambda: of_stream(True)[1], lambda: of_stream(False)[1], side_by_side
        )
        return self._log_mel.joined(vectors, statistics)

    def _cancelled(self, waves: torch.Tensor) -> torch.Tensor:
        return waves if self.far_canceller is None else self.far_canceller(waves)
