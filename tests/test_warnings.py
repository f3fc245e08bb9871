"""Deprecations that transformers logs rather than warns about stop a test."""

import pytest
from transformers.utils import logging


def test_a_logged_deprecation_is_an_error():
    logger = logging.get_logger("transformers.some_module")
    logger.warning("an ordinary warning")
    with pytest.raises(FutureWarning, match="deprecated"):
        logger.warning("`torch_dtype` is deprecated! Use `dtype` instead!")
