"""What measures are made of: observers of a model that reads, the subject that is measured, and on what material."""

from headwise.observe.material import GateTraining, Material, Recall, check_recalls
from headwise.observe.measures import MEASURES, Found, Measure, Progress, measure
from headwise.observe.observer import LastQueries, Observer
from headwise.observe.subject import Attention, LayerAttention, Subject
from headwise.observe.training import finite, trained, trained_layers

__all__ = [
    "MEASURES",
    "Attention",
    "Found",
    "GateTraining",
    "LastQueries",
    "LayerAttention",
    "Material",
    "Measure",
    "Observer",
    "Progress",
    "Recall",
    "Subject",
    "check_recalls",
    "finite",
    "measure",
    "trained",
    "trained_layers",
]
