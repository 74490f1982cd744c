"""The HTTP server: who may ask, what a request may cost, batching and answers.

May use every other room.
"""
