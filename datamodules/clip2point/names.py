"""Class names and lists of the data sets, as the official code has them (order matters: it is that of the labels)."""

from __future__ import annotations

MODELNET10 = (
    "bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet",
)  # fmt: skip
MODELNET40 = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
SCANOBJECTNN = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
)  # fmt: skip
SHAPENET55 = {
    "02691156": "airplane", "02747177": "ashcan", "02773838": "bag", "02801938": "basket", "02808440": "bathtub",
    "02818832": "bed", "02828884": "bench", "02843684": "birdhouse", "02871439": "bookshelf", "02876657": "bottle",
    "02880940": "bowl", "02924116": "bus", "02933112": "cabinet", "02942699": "camera", "02946921": "can",
    "02954340": "cap", "02958343": "car", "02992529": "cellular telephone", "03001627": "chair", "03046257": "clock",
    "03085013": "computer keyboard", "03207941": "dishwasher", "03211117": "display", "03261776": "earphone",
    "03325088": "faucet", "03337140": "file", "03467517": "guitar", "03513137": "helmet", "03593526": "jar",
    "03624134": "knife", "03636649": "lamp", "03642806": "laptop", "03691459": "loudspeaker", "03710193": "mailbox",
    "03759954": "microphone", "03761084": "microwave", "03790512": "motorcycle", "03797390": "mug",
    "03928116": "piano", "03938244": "pillow", "03948459": "pistol", "03991062": "pot", "04004475": "printer",
    "04074963": "remote control", "04090263": "rifle", "04099429": "rocket", "04225987": "skateboard",
    "04256520": "sofa", "04330267": "stove", "04379243": "table", "04401088": "telephone", "04460130": "tower",
    "04468005": "train", "04530566": "vessel", "04554684": "washer",
}  # fmt: skip
"""Prompt names by synset, in label order."""

SHAPENET55_LEFT_OUT = frozenset(
    (
        "03001627-udf068a6b", "03001627-u6028f63e", "03001627-uca24feec", "04379243-", "02747177-",
        "03001627-u481ebf18", "03001627-u45c7b89f", "03001627-ub5d972a1", "03001627-u1e22cc04", "03001627-ue639c33f",
    )
)  # fmt: skip
"""Models without usable pictures; ids are cut at the second "-", as the official list is."""

# Folder names by data set, and what prompts say. ModelNet10's prompts keep the underscore of night_stand.
CLASS_LISTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "modelnet10": (MODELNET10, MODELNET10),
    "modelnet40": (MODELNET40, tuple(name.replace("_", " ") for name in MODELNET40)),
    "scanobjectnn": (SCANOBJECTNN, SCANOBJECTNN),
}
