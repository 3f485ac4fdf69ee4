"""PaddleSlim, with every work-around that it needs on Paddle 3 and a CPU. Nothing else imports ``paddleslim``.

| module         | from PaddleSlim                            | worked around, as measured on 2.6.0                            |
|----------------|--------------------------------------------|----------------------------------------------------------------|
| `shipped.py`   | all of it                                  | casts to float16, which lacks CPU kernels; an empty index      |
| `folds.py`     | `Smooth`, `Shift`, `AutoClip`              | norms paired with wrong layers; inputs seen twice; hooks left  |
| `gptq.py`      | `GPTQ`                                     | without data every weight becomes 0                            |
| `observers.py` | observers of activations and weights       | only the last batch counts; signs; magnitudes called scales    |
| `searches.py`  | searches for scales, `LayerWiseQuantError` | groups that do not divide                                      |
| `table.py`     | the methods above as rows of a table       |                                                                |

Methods change a PaddleNLP model or decoder layer (``paddle_ds_slim.paddlenlp_model``) in place. ``batches`` are token ids for a
model (int64 ``[T]`` or ``[B, T]``), hidden states for a decoder layer (float32 ``[B, T, H]``), never padded.
"""

from paddle_ds_slim.paddleslim_adapter.folds import auto_clip, shift, smooth
from paddle_ds_slim.paddleslim_adapter.gptq import gptq
from paddle_ds_slim.paddleslim_adapter.observers import channel_scales, observer_scale
from paddle_ds_slim.paddleslim_adapter.searches import layer_wise_error, search_smooth_scale
from paddle_ds_slim.paddleslim_adapter.shipped import version
from paddle_ds_slim.paddleslim_adapter.table import Row, fake_quantised, paddleslim_table

__all__ = [
    "Row",
    "auto_clip",
    "channel_scales",
    "fake_quantised",
    "gptq",
    "layer_wise_error",
    "observer_scale",
    "paddleslim_table",
    "search_smooth_scale",
    "shift",
    "smooth",
    "version",
]
