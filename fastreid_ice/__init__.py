"""ICE: Inter-instance Contrastive Encoding for unsupervised person re-identification, as a plugin for fastreid.

Importing the package imports nothing else, so that the pure parts (``fastreid_ice.clustering``,
``fastreid_ice.losses``) can be used without fastreid. The parts that plug into fastreid are
``fastreid_ice.config``, ``fastreid_ice.modeling``, ``fastreid_ice.data`` and ``fastreid_ice.engine``.
"""

__version__ = "0.1.0"
