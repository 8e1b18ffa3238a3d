from .training import Classifier as Classifier
from .training import fit_quietly as fit_quietly
from .training import predict_with as predict_with
