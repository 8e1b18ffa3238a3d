from .attacks import check_attack as check_attack
from .attacks import imported_names as imported_names
from .scorers import check_scorer as check_scorer
from .tiny_images import TinyImages as TinyImages
