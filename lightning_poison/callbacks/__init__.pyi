from .adversarial_training import AdversarialTraining as AdversarialTraining
from .attack_monitor import AttackMonitor as AttackMonitor
from .batch_augmentation import BatchAugmentation as BatchAugmentation
from .lgm_injector import LGMInjector as LGMInjector
from .sanitizer import Sanitizer as Sanitizer
