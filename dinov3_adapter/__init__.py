"""DINOv3 vision towers from weights in any common layout; usable without the rest of this project.

from dinov3_adapter import build_vision_tower
tower = build_vision_tower("dinov3_vitb", "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth").eval()
features = tower(images)   # normalised float (B, 3, 224, 224) to (B, 768)
"""

from dinov3_adapter.convert import to_huggingface
from dinov3_adapter.errors import AdapterError, WeightsError
from dinov3_adapter.registry import SIZES, Size
from dinov3_adapter.tower import VisionTower, build_timm_tower, build_vision_tower, tower_from_state_dict

__all__ = [
    "SIZES",
    "AdapterError",
    "Size",
    "VisionTower",
    "WeightsError",
    "build_timm_tower",
    "build_vision_tower",
    "to_huggingface",
    "tower_from_state_dict",
]
