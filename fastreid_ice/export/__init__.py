"""Trained models in the forms that others take: fastreid's model zoo, ONNX, TorchScript, safetensors."""

from fastreid_ice.export.exporting import FORMATS, ExportResult, export_model

__all__ = ["FORMATS", "ExportResult", "export_model"]
