from .manifest import Manifest as Manifest
from .manifest import keep_by_hand as keep_by_hand
from .manifest import read_manifest as read_manifest
from .manifest import write_manifest as write_manifest
