from .curves import plot_features as plot_features
from .curves import plot_likelihood_histogram as plot_likelihood_histogram
from .curves import plot_roc as plot_roc
from .samples import plot_caught as plot_caught
from .samples import plot_poison_beside_base as plot_poison_beside_base
