"""The tasks that `zoo new` knows: which recipe each builds upon, which models fit, how the data must lie."""

from __future__ import annotations

from collections.abc import Sequence

from zoo import catalog
from zoo.errors import ZooError, did_you_mean
from zoo.starters import layouts
from zoo.starters.starter import Starter, Variant

_FACES = tuple(f"zoo.papers.face_representation.{name}" for name in ("SwAV", "MoCo", "SimSiam", "FaceTask"))
_VITS = ("zoo.papers.droppos.DropPos", "zoo.tasks.ImageClassification")
_FRACTALS = (
    "zoo.papers.fractals.FractalPretraining",
    "zoo.papers.fractals.FractalSimSiam",
    "zoo.tasks.ResNetClassification",
)
_TEXT_TASKS = tuple(f"zoo.tasks.{name}" for name in ("TextClassification", "TokenClassification", "QuestionAnswering"))
_ELECTRA = ("zoo.papers.electra.Electra",)
_BERT = (*(f"zoo.papers.well_read_students.{name}" for name in ("CompactBert", "Distillation")), *_TEXT_TASKS)


_TUNING = "full, frozen (the head alone), partial (with blocks: 2) or lora (with rank: 8; extra `lora`)"
_EPOCHS = "longest training; it stops earlier when {monitor} no longer gets better"
_BATCH = "as many as fit into memory: `zoo check` measures it"


def _comments(monitor: str, root: str, tuning: bool = True, key: str = "backbone", **more: str) -> dict[str, str]:
    notes = {"data.root": root, f"model.{key}": "what to start from: a name of `zoo ls`, a checkpoint or a run folder"}
    if tuning:
        notes["model.tuning.mode"] = _TUNING
    notes |= {name.replace("__", "."): text for name, text in more.items()}
    return notes | {"trainer.max_epochs": _EPOCHS.format(monitor=monitor), "data.batch_size": _BATCH}


_SMALL_IMAGES = {"data.batch_size": 32, "data.num_workers": 2, "data.val_fraction": 0.2}
_FACE = {"data.num_workers": 2, "data.batch_size": 32}
_FACE_VIEW = {"mean": [0.485, 0.456, 0.406], "std": [0.228, 0.224, 0.225]}
_FACE_PIXELS = {f"data.{key}": values for key, values in _FACE_VIEW.items()}
_TABLE = "datamodules.image_table.ImageTableDataModule"
_TABLE_IMAGES = {
    "image_size": 32,
    "batch_size": 32,
    "train_augment": "crop",
    "crop_scale": [0.5, 1.0],
    "val_fraction": 0.2,
    "num_workers": 2,
}
_MRI = {"data.num_workers": 2}

STARTERS: tuple[Starter, ...] = (
    Starter(
        "image-classification",
        "classes of pictures",
        (
            Variant(
                "droppos/finetune_classification",
                _VITS,
                settings=_SMALL_IMAGES,
                from_model={"data.image_size": "image_size"},
            ),
            Variant(
                "fractals/finetune_classification",
                _FRACTALS,
                settings=_SMALL_IMAGES,
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/acc1",
        "max",
        layouts.IMAGES,
        "PICTURES",
        "classes.csv",
        _comments("val/acc1", "your pictures, one subfolder a class"),
    ),
    *(
        Starter(
            task,
            title,
            (
                Variant(
                    "droppos/finetune_classification",
                    _VITS,
                    settings={"model.label_smoothing": 0.0},
                    from_model={"data.image_size": "image_size"},
                    data=(_TABLE, {**_TABLE_IMAGES, **settings}),
                ),
                Variant(
                    "fractals/finetune_classification",
                    _FRACTALS,
                    settings={"model.head_lr_factor": head},
                    from_model={"data.image_size": "image_size"},
                    data=(_TABLE, {**_TABLE_IMAGES, **settings, "mean": [0.5] * 3, "std": [0.5] * 3}),
                ),
                Variant(
                    "fractals/finetune_classification",
                    _FACES[:3],
                    settings={"model.head_lr_factor": head},
                    from_model={"data.image_size": "image_size"},
                    data=(_TABLE, {**_TABLE_IMAGES, **settings, **_FACE_VIEW}),
                ),
            ),
            monitor,
            "max",
            layout,
            "PICTURES",
            output,
            _comments(monitor, "the folder with your table and pictures", data__table="the table's file", **more),
        )
        for task, title, settings, head, monitor, layout, output, more in (
            (
                "image-multilabel",
                "labels of pictures, any number of them on each",
                {"table": "labels.csv", "targets": "labels", "group_column": None},
                10.0,
                "val/mAP",
                layouts.LABEL_TABLE,
                "labels.csv",
                {"data__group_column": "a column of patients, people or places that stay on one side; null for none"},
            ),
            (
                "image-regression",
                "numbers of pictures or faces: age, size, counts",
                {
                    "table": "numbers.csv",
                    "targets": "numbers",
                    "group_column": None,
                    "crop_scale": [0.8, 1.0],  # a number may hang on how much is seen
                },
                1.0,
                "val/spearman",
                layouts.NUMBER_TABLE,
                "numbers.csv",
                {"data__group_column": "a column of patients, people or places that stay on one side; null for none"},
            ),
        )
    ),
    Starter(
        "image-segmentation",
        "classes of pixels in pictures, as masks",
        (
            Variant(
                "droppos/finetune_segmentation",
                _VITS,
                settings={"data.group_pattern": None},
                from_model={"data.image_size": ("image_size", 64), "model.image_size": ("image_size", 64)},
            ),
            Variant("fractals/finetune_segmentation", _FRACTALS, settings={"data.group_pattern": None}),
            Variant("fractals/finetune_segmentation", _FACES, settings={"data.group_pattern": None, **_FACE_PIXELS}),
        ),
        "val/iou",
        "max",
        layouts.MASKS,
        "PICTURES",
        "masks/",
        _comments(
            "val/iou",
            "your pictures and masks",
            data__group_pattern="part of the names that says who a picture is of, such as ^(P[0-9]+)_; null for none",
            data__augment="turns for pictures without an up (from above, under a microscope), flip, or none",
            data__image_size="training squares, and whole pictures' shorter side; model.image_size is the same",
        ),
    ),
    Starter(
        "face-landmarks",
        "points of faces or other things, as many as you have marked",
        (
            Variant(
                "face_representation/finetune_landmarks",
                (*_FACES, *_VITS),
                settings={**_FACE, "data.dataset": "points", "data.normalisation": None},
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/nme",
        "min",
        layouts.LANDMARKS,
        "FACES",
        "points.csv",
        _comments(
            "val/nme",
            "your pictures with points.csv or .pts files",
            data__normalisation="of errors: pair:A-B (two points), box_diagonal, image_diagonal; null: eyes or box",
        ),
    ),
    Starter(
        "face-attributes",
        "classes of faces",
        (
            Variant(
                "face_representation/finetune_attributes",
                (*_FACES, *_VITS),
                settings=_FACE,
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/acc1",
        "max",
        layouts.FACE_CLASSES,
        "FACES",
        "classes.csv",
        _comments("val/acc1", "your faces: train/ and test/, one subfolder a class in each"),
    ),
    Starter(
        "face-verification",
        "an embedding of faces: same person or not",
        (
            Variant(
                "face_representation/finetune_verification",
                (*_FACES, *_VITS),
                settings=_FACE,
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/tar",
        "max",
        layouts.IDENTITIES,
        "FACES",
        "embeddings.csv",
        _comments("val/tar", "your faces: train/ and test/, one subfolder a person, nobody in both"),
    ),
    Starter(
        "mri-segmentation",
        "brain-tumour regions in MRI, any subset of four sequences",
        (
            Variant(
                "bm_mae/finetune_segmentation",
                ("zoo.papers.bm_mae.BMMAE",),
                settings=_MRI,
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/dice",
        "max",
        layouts.MRI_SEGMENTATION,
        "SUBJECTS",
        "masks/",
        _comments("val/dice", "your subjects", model__modalities="the sequences that you have, of t1, t1ce, t2, flair"),
    ),
    Starter(
        "mri-classification",
        "a yes-or-no question about MRI, from a table",
        (
            Variant(
                "bm_mae/finetune_classification",
                ("zoo.papers.bm_mae.BMMAE",),
                settings={**_MRI, "data.label": "label", "data.table": "{root}/subjects.csv"},
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/auroc",
        "max",
        layouts.MRI_TABLE,
        "SUBJECTS",
        "classes.csv",
        _comments(
            "val/auroc",
            "your subjects",
            data__label="the column of the table with two different values",
            model__modalities="the sequences that you have, of t1, t1ce, t2, flair",
        ),
    ),
    Starter(
        "mri-survival",
        "survival from MRI and a table of times",
        (
            Variant(
                "bm_mae/finetune_survival",
                ("zoo.papers.bm_mae.BMMAE",),
                settings={
                    **_MRI,
                    "data.table": "{root}/subjects.csv",
                    "data.time": "time",
                    "data.event": "event",
                },
                from_model={"data.image_size": "image_size"},
            ),
        ),
        "val/c_index",
        "max",
        layouts.MRI_SURVIVAL,
        "SUBJECTS",
        "risks.csv",
        _comments(
            "val/c_index",
            "your subjects",
            data__time="the column of follow-up times",
            data__event="the column of events: 1 death, 0 censored",
            model__modalities="the sequences that you have, of t1, t1ce, t2, flair",
        ),
    ),
    Starter(
        "cloud-classification",
        "classes of meshes and point clouds",
        (
            Variant(
                "clip2point/finetune_shapes",
                ("zoo.papers.clip2point.CLIP2Point",),
                settings={"data.num_workers": 2},
                from_model={"model.clip": "clip"},
            ),
        ),
        "val/acc1",
        "max",
        layouts.SHAPES,
        "SHAPES",
        "classes.csv",
        _comments(
            "val/acc1",
            "your shapes, one subfolder a class",
            tuning=False,
            model__upright="true if your shapes are z-up",
            model__lr="rate of the two adapters, which are all that is trained",
        ),
    ),
    Starter(
        "trajectory-forecasting",
        "where a road user will be in 3 s",
        (
            Variant(
                "trajectory_mae/finetune_scenes",
                tuple(f"zoo.papers.trajectory_mae.{name}" for name in ("TrajectoryMAE", "TrajectoryForecaster")),
                "pretrained",
                from_model={"model.width": "width", "model.depth": "depth", "model.normalise": "normalise"},
            ),
        ),
        "val/minFDE_6",
        "min",
        layouts.SCENES,
        "SCENES.csv",
        "forecasts.json",
        _comments(
            "val/minFDE_6",
            "your scenes",
            key="pretrained",
            data__map_dir="the vector map; null looks in data.root and above it",
        ),
    ),
    *(
        Starter(
            f"text-{name}",
            title,
            (
                Variant(f"electra/finetune_{recipe}", _ELECTRA, settings=settings),
                Variant(bert, _BERT, settings=settings),
            ),
            monitor,
            "max",
            layout,
            files,
            output,
            _comments(monitor, root, data__max_length="longer texts are cut (tags: go on in the next item)"),
        )
        for name, title, recipe, bert, settings, monitor, layout, files, output, root in (
            (
                "classification",
                "classes of texts or pairs of texts",
                "classification",
                "well_read_students/finetune",
                {},
                "val/acc",
                layouts.TEXTS,
                "texts.csv",
                "classes.tsv",
                "train and dev as .tsv, .csv or .jsonl",
            ),
            (
                "regression",
                "a number for a text",
                "classification",
                "well_read_students/finetune",
                {"model.regression": True, "data.regression": True},
                "val/spearman",
                layouts.TEXT_NUMBERS,
                "texts.csv",
                "scores.tsv",
                "train and dev as .tsv, .csv or .jsonl",
            ),
            (
                "tagging",
                "tags of words: entities, chunks, parts of speech",
                "tagging",
                "well_read_students/finetune_tagging",
                {},
                "val/acc",
                layouts.TAGS,
                "words.conll",
                "tagged.conll",
                "train.txt and dev.txt, CoNLL",
            ),
            (
                "qa",
                "the answer to a question, marked in a text",
                "squad",
                "well_read_students/finetune_squad",
                {"data.num_workers": 2},
                "val/f1",
                layouts.QUESTIONS,
                "questions.json",
                "answers.json",
                "train and dev in SQuAD's JSON",
            ),
        )
    ),
)


def find_starter(task: str) -> Starter:
    """The starter of that name. Raises `ZooError` with the nearest ones."""
    names = [starter.task for starter in STARTERS]
    for starter in STARTERS:
        if starter.task == task:
            return starter
    raise ZooError(f"There is no task {task!r}.{did_you_mean(task, names)} `zoo new --list` shows them all.")


def fitting_models(starter: Starter, manifests: Sequence[catalog.Manifest] | None = None) -> list[str]:
    """Names of the catalogue's models that a starter takes; `manifests` spares reading them once for each starter."""
    if manifests is None:
        manifests = [catalog.info(name) for name in catalog.list_models()]
    return [manifest.name for manifest in manifests if starter.variant(manifest.class_path)]
