from .demo_training import Classifier as Classifier
from .demo_training import fit_quietly as fit_quietly
from .demo_training import predict_with as predict_with
