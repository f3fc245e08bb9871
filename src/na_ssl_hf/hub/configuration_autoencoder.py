"""Configuration of the DCASE Task 2 autoencoder baseline."""

from huggingface_hub.dataclasses import strict

from .configuration_noise_aware import CheckedConfig, checked


@checked
@strict
class AutoencoderConfig(CheckedConfig):
    """Configuration of [`AutoencoderModel`] (Harada et al., "First-shot anomaly sound detection for machine condition
    monitoring: a domain generalization baseline", EUSIPCO 2023). The defaults are the published ones; keyword-only.

    Args:
        num_mel_bins, num_frames: mel bins of a log-mel frame, and number of frames in one input vector.
        hidden_size, num_hidden_layers: width and number of the hidden layers, of the encoder and of the decoder each.
        bottleneck_size: width between encoder and decoder.
        batch_norm_eps: epsilon of the batch norm after every layer but the last.
        two_channel: whether the model was trained on the close channel of two-channel recordings, or on mono ones.
        mse_threshold, mahalanobis_threshold: a score above it is an alarm; `None` before training, and for Mahalanobis
            where the covariance of a domain could not be estimated.

    Raises:
        ValueError: a size is below 1, `batch_norm_eps` is not positive, or a value is outside its [`BOUNDS`].
    """

    model_type = "dcase-autoencoder"

    num_mel_bins: int = 128
    num_frames: int = 5
    hidden_size: int = 128
    num_hidden_layers: int = 4
    bottleneck_size: int = 8
    batch_norm_eps: float | int = 1e-3
    two_channel: bool = True
    mse_threshold: float | int | None = None
    mahalanobis_threshold: float | int | None = None


__all__ = ["AutoencoderConfig"]

AutoencoderConfig.register_for_auto_class("AutoConfig")
