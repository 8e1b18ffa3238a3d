from .attacks import check_attack as check_attack
from .scorers import check_scorer as check_scorer
from .tiny_images import TinyImages as TinyImages
