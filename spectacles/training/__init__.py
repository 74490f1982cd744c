"""The two phases of training, their steps, checkpoints and the final bundle.

May use core, tracking, metrics, data, report and models.
"""
