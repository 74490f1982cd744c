"""Networks: backbones, the linear probe, the bundle, engines and out-of-distribution scores.

May use core, metrics and data.
"""
