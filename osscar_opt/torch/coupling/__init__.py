"""What goes together in a model: which layers' outputs are which layers' inputs, channel by channel.

`trace_coupling` runs a model once on a small batch and watches every operation. Nothing is assumed about names or
families: a residual sum, a gate, a depthwise convolution, a concatenation, heads that share keys and values are all
seen in what the model does, and what cannot be followed is named and left alone.
"""

from __future__ import annotations

from osscar_opt.torch.coupling.build import trace_coupling
from osscar_opt.torch.coupling.sites import Coupling, Refusal, Site, Slice

__all__ = ["Coupling", "Refusal", "Site", "Slice", "trace_coupling"]
