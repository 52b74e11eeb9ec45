"""Evaluation without sorting: CMC, mAP and mINP from counts.

The evaluator itself is in :mod:`fastreid_ice.evaluation.evaluator`; what is here never imports fastreid.
"""

from fastreid_ice.evaluation.expansion import expand_queries
from fastreid_ice.evaluation.features import FeatureRows
from fastreid_ice.evaluation.ranking import Identities, Ranking, chunk_size, evaluate_rank, rank_queries
from fastreid_ice.evaluation.rerank import RerankedSimilarities
from fastreid_ice.evaluation.roc import true_positive_rates
from fastreid_ice.evaluation.similarities import Similarities

__all__ = [
    "FeatureRows",
    "Identities",
    "Ranking",
    "RerankedSimilarities",
    "Similarities",
    "chunk_size",
    "evaluate_rank",
    "expand_queries",
    "rank_queries",
    "true_positive_rates",
]
