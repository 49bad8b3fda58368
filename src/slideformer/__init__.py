"""Full-parameter fine-tuning of models larger than GPU memory."""

import os
from importlib.metadata import version

__version__ = version("slideformer")  # said once, in pyproject.toml

# Large buffers come and go within a step (the head and its gradient); without growing segments a budget of 8 GiB lost
# 1.2 GiB to fragmentation. Read when the GPU is first used; a value of the user's own stays.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
