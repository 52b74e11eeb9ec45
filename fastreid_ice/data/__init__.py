"""Images in, labelled batches out: datasets, views, samplers, and the loader that changes with the pseudo labels.

What looks at folders (``folder_scan``, ``folder_table``, ``folder_report``, ``folder_summary``, ``labelled_folder``,
``numbering``) needs numpy and Pillow only, ``samplers`` and ``randomness`` torch; the other modules plug into fastreid.
"""
