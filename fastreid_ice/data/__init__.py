"""Images in, labelled batches out: datasets, views, samplers, and the loader that changes with the pseudo labels.

``samplers`` and ``randomness`` need torch only; the other modules plug into fastreid.
"""
