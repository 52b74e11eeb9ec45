"""Pictures of a run: the clusters found and the curves."""

from fastreid_ice.report.contact_sheet import contact_sheet
from fastreid_ice.report.curves import training_curves

__all__ = ["contact_sheet", "training_curves"]
