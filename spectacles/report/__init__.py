"""What a person looks at: plots, galleries, the report, the model card and the review page. It knows no network.

May use core, metrics and data.
"""
