"""Stand in for torchaudio, so that LLaMA Factory starts beside a CPU build of PyTorch.

llamafactory.data.mm_plugin imports torchaudio when it is loaded and uses it only to read audio files.
PyPI's torchaudio is built against CUDA and cannot be loaded there. Nothing is offered here: reading audio fails with
AttributeError, text works. There is no distribution of this name, so transformers finds no torchaudio and leaves its
audio parts alone.
"""

__version__ = "0.0.0"
