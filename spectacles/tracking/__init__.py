"""What a run reports to MLflow: an event log first, then a process of its own that delivers it.

May use core.
"""
