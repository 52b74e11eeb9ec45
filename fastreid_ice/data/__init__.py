"""Images in, labelled batches out: datasets, views, samplers, and the loader that changes with the pseudo labels.

``fastreid_ice.data.synthetic`` needs neither torch nor fastreid; the other modules plug into fastreid.
"""
