"""How the data of each starter must lie, for its README."""

IMAGES = """\
One subfolder a class, with or without `train/` and `val/` above them. Without, a fifth of each class is held out.

    data/
      cat/    1.jpg  2.png ...
      dog/    7.jpg ...

or `data/train/cat/`, `data/val/cat/` and so on. Parquet works too: `train.parquet` and `test.parquet` with the columns
`image` and `label`. JPEG, PNG, WebP, TIFF, BMP, GIF of any size."""

LABEL_TABLE = """\
A table with a row a picture, and the pictures beside it or in `images/`.

    data/
      labels.csv
      images/   a.jpg  b.jpg ...

`labels.csv` has a column `file` and a column a label: 1 it is there, 0 it is not, empty for not known.

    file,cat,dog,outdoors
    a.jpg,1,0,1
    b.jpg,0,,0

Or one column `labels` with names: `a.jpg,cat;outdoors`. A column `split` with `train` and `val` fixes what is held out;
without, a fifth is."""

NUMBER_TABLE = """\
A table with a row a picture, and the pictures beside it or in `images/`.

    data/
      numbers.csv
      images/   a.jpg  b.jpg ...

`numbers.csv` has a column `file` and a column a number; empty cells are not known and do not count.

    file,age
    a.jpg,34.5
    b.jpg,61

A column `split` with `train` and `val` fixes what is held out; without, a fifth is. Faces should be cropped."""

MASKS = """\
Pictures in `images/`, a mask of the same name for each in `masks/`, with or without `train/` and `val/` above them.
Without, a fifth of the pictures is held out.

    data/
      classes.txt
      images/   a.jpg  b.jpg ...
      masks/    a.png  b.png ...

A mask is a grey or palette PNG of its picture's size whose pixels are numbers of classes: 0, 1, 2 and so on, 255 where
a pixel shall not count (`data.ignore_index`). `classes.txt` has the names, a line each, the first for 0; without it the
numbers are the names. Masks of one kind of thing may be 0 and 255. Masks in colours need `classes.csv` instead:

    name,red,green,blue
    background,0,0,0
    road,128,64,128"""

LANDMARKS = """\
Pictures and their points: a `.pts` file beside each (300-W's form: pixels, the first at 1), or one table. Every picture
has as many points. Every fifth picture tests.

    data/
      a.jpg   a.pts          or    points.csv  images/a.jpg  images/b.jpg
      b.jpg   b.pts

`points.csv` has a row a picture, pixels from 0, empty where a point is not known; columns `left,top,right,bottom` (the
object's box) and `split` (`train`, `test`) may follow:

    file,x0,y0,x1,y1
    a.jpg,30.5,41,88,40

Training cuts the object out by its box, or around its points, with a margin; `zoo predict` takes such cut-outs."""

FACE_CLASSES = """\
Cropped faces, one subfolder a class, in `train/` and in `test/`; the same classes in both.

    data/
      train/   smiling/ 1.jpg ...   neutral/ 2.jpg ...
      test/    smiling/ 8.jpg ...   neutral/ 9.jpg ..."""

IDENTITIES = """\
Cropped faces, one subfolder a person; nobody is in both `train/` and `test/`.

    data/
      train/   anna/ 1.jpg 2.jpg ...   ben/ 1.jpg ...
      test/    carla/ 1.jpg 2.jpg ...  dan/ 1.jpg ..."""

MRI_SEGMENTATION = """\
NIfTI files, skull-stripped and registered to each other, named as in BraTS (or as in BraTS 2023 and UPenn-GBM), in any
folders. A fifth of the patients is held out; `data/train` and `data/val` fix the split.

    data/
      P001/   P001_t1.nii.gz  P001_t1ce.nii.gz  P001_t2.nii.gz  P001_flair.nii.gz  P001_seg.nii.gz
      P002/   ...

Labels of the segmentation: 1 core, 2 oedema, 4 enhancing tumour (3 since BraTS 2023). Sequences may be missing: leave
them out of `model.modalities`, or see `data.on_missing`."""

MRI_TABLE = """\
NIfTI files, skull-stripped and registered to each other, named as in BraTS, in any folders, and a table with a row a
subject. One fold of five is held out.

    data/
      subjects.csv
      P001/   P001_t1.nii.gz  P001_t1ce.nii.gz  P001_t2.nii.gz  P001_flair.nii.gz
      P002/   ...

`subjects.csv` has a column `subject` with the ids and a column `label` with two different values:

    subject,label
    P001,mutant
    P002,wildtype"""

MRI_SURVIVAL = """\
NIfTI files, skull-stripped and registered to each other, named as in BraTS, in any folders, and a table with a row a
subject. One fold of five is held out.

    data/
      subjects.csv
      P001/   P001_t1.nii.gz  P001_t1ce.nii.gz  P001_t2.nii.gz  P001_flair.nii.gz
      P002/   ...

`subjects.csv` has the columns `subject`, `time` (any unit) and `event` (1 death, 0 censored):

    subject,time,event
    P001,2.31,1
    P002,4.02,0"""

SHAPES = """\
Meshes or point clouds (OFF, PLY, OBJ, STL, XYZ, NPY), one subfolder a class, with or without `train/` and `test/` above
them. Without, a fifth of each class is held out (a class with one shape has none to hold out).

    data/
      chair/   1.off  2.obj ...
      mug/     1.ply ..."""

SCENES = """\
One CSV a scene with the columns of Argoverse 1 (`TIMESTAMP,TRACK_ID,OBJECT_TYPE,X,Y,CITY_NAME`): 10 Hz, 2 s of history
and 3 s of future, one track is the `AGENT`. The vector map (`map_files`) lies beside them or above.

    data/
      map_files/   pruned_argoverse_MIA_10316_vector_map.xml  pruned_argoverse_PIT_10314_vector_map.xml
      train/data/  1.csv  2.csv ...
      val/data/    3.csv ...

CSVs directly in the folder work too: a tenth of the runs is then held out."""

TEXTS = """\
`train` and `dev`, each as .csv or .tsv with a header, or .jsonl, with the columns `text` and `label`.

    data/
      train.csv
      dev.csv

For pairs of texts name the second column: `data.pair_column`."""

TEXT_NUMBERS = """\
`train` and `dev`, each as .csv or .tsv with a header, or .jsonl, with the columns `text` and `label`, a number.

    data/
      train.csv
      dev.csv"""

TAGS = """\
`train.txt` and `dev.txt` in CoNLL: a word a line, its tag in the last column, a blank line after each sentence.

    Berlin B-LOC
    is     O
    big    O

Entity tags (B-, I-, also E-, S-) are learned as BIOES; for parts of speech set `data.scheme: as_is`."""

QUESTIONS = """\
`train.json` and `dev.json` in SQuAD's layout: data, paragraphs, context, qas with id, question, answers (text and
answer_start) and, where questions may have no answer, is_impossible.

    data/
      train.json
      dev.json"""
