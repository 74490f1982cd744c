"""Our pipeline against a plain tutorial loop and fastai: same splits, same starting weights, same machine, in turn."""
