"""What a run reports to MLflow: an event log first, then a process of its own that delivers it.

`registry` keeps the models' versions there.

May use core, and `registry` also metrics, data and models.
"""
