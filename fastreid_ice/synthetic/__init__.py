"""The embedded dataset: people-like figures under several cameras, rendered with numpy and Pillow only.

``dataset`` lays the images out, ``people`` draws appearances, ``figures`` paints them, ``scenes`` is what the cameras
add.
"""

from fastreid_ice.synthetic.dataset import render_synthetic_reid
from fastreid_ice.synthetic.scenes import SceneDifficulty

__all__ = ["SceneDifficulty", "render_synthetic_reid"]
