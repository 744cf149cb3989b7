"""The `zoo` command: what there is, getting weights, features of files, exporting what was trained."""

from __future__ import annotations

import json
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo import catalog, hub, loading
from zoo.cli import compare, driving, faces, folds, students, volumes
from zoo.cli.check import check
from zoo.cli.fractals import fractals
from zoo.cli.kfold import kfold
from zoo.cli.new import new
from zoo.cli.predict import predict
from zoo.cli.retrieval import retrieval
from zoo.cli.tables import print_facts, print_table
from zoo.cli.tokenizer import tokenizer
from zoo.errors import ZooError, did_you_mean


def _examples(*commands: str) -> str:
    """Epilog of a command's help; a blank line is what keeps each on a line of its own."""
    return "\n\n".join(["Examples:" if len(commands) > 1 else "Example:", *commands])


app = typer.Typer(
    name="zoo",
    help="A model zoo of pre-training methods. Train with `lightning run`, everything else is here.",
    epilog="Exit codes: 0 done, 1 a verification failed, 2 something to correct.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name in the catalogue, or a manifest file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]


SHELVES = ("models", "recipes", "papers")


class DType(StrEnum):
    """How `zoo export` stores floating-point weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ExportFormat(StrEnum):
    """What `zoo export` makes of a checkpoint."""

    weights = "weights"
    onnx = "onnx"
    torch = "torch"


app.add_typer(fractals)
app.add_typer(driving.app, name="driving")
app.add_typer(faces.app, name="faces")
app.add_typer(students.app, name="students")


def main(argv: list[str] | None = None) -> None:
    """Console script `zoo`; returns normally when all went well, else exits with the code that says why."""
    try:
        app(args=argv, prog_name="zoo")
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code:
            raise


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from zoo import __version__

        print(__version__)
        raise typer.Exit


@app.command("ls", epilog=_examples("zoo ls", "zoo ls recipes", "zoo ls models 'droppos*'", "zoo ls recipes --json"))
def list_(
    what: Annotated[str, typer.Argument(metavar="[models|recipes|papers]", help="What to list.")] = "models",
    pattern: Annotated[str, typer.Argument(help="Only names that match, with * and ?.")] = "*",
    as_json: JsonOption = False,
) -> None:
    """List models, recipes or papers."""
    if what not in SHELVES:
        if pattern != "*" or not any(letter in what for letter in "*?["):
            raise ZooError(f"`zoo ls` lists models, recipes or papers, not {what!r}.{did_you_mean(what, SHELVES)}")
        what, pattern = "models", what  # `zoo ls 'droppos*'`
    if what == "models":
        models = [catalog.info(name) for name in catalog.list_models(pattern)]
        rows = [
            {
                "name": model.name,
                "paper": model.paper,
                "parameters": model.parameters,
                "source": model.source.kind,
                "title": model.title,
            }
            for model in models
        ]
    elif what == "recipes":
        recipes = [catalog.recipe_info(name) for name in catalog.list_recipes(pattern)]
        rows = [{"name": r.name, "stage": r.stage, "hardware": r.hardware, "time": r.time, "title": r.title}
                for r in recipes]  # fmt: skip
    else:
        papers = [catalog.paper_info(slug) for slug in catalog.list_papers(pattern)]
        rows = [{"name": p.slug, "models": len(p.models), "recipes": len(p.recipes), "title": p.title} for p in papers]
    if as_json:
        _print_json(rows)
    elif rows:
        print_table(rows)
    else:
        print(f"No {what} match {pattern!r}." if pattern != "*" else f"There are no {what}.", file=sys.stderr)


@app.command("info", epilog=_examples("zoo info droppos-vitb", "zoo info droppos/quickstart --json"))
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, a manifest file, or a recipe.")],
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a model or recipe."""
    found = _model_or_recipe(name)
    if as_json:
        _print_json(found.as_dict())
    else:
        print_facts(str(found))


@app.command(
    "cp", epilog=_examples("zoo cp droppos/finetune_classification my_task.yaml", "zoo cp droppos/quickstart .")
)
def copy(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="New file, or a folder to put it in.")],
    force: ForceOption = False,
) -> None:
    """Copy a recipe, to edit and run as your own."""
    source = catalog.recipe_info(recipe).path
    target = dest / source.name if dest.is_dir() else dest
    if target.suffix not in (".yaml", ".yml"):
        raise ZooError(f"A recipe is a YAML file: give a name that ends in .yaml, or an existing folder, not {dest}.")
    if target.exists() and not force:
        raise ZooError(f"{target} exists already: choose another name, or overwrite it with --force.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except (OSError, shutil.SameFileError) as error:
        raise ZooError(f"Cannot write {target}: {getattr(error, 'strerror', None) or error}.") from error
    print(f"{target}\nRun it: lightning run {target}")


@app.command("download", epilog=_examples("zoo download droppos-vitb"))
def download(name: NameArgument) -> None:
    """Fetch a model's weights into the cache, and print where they are."""
    print(hub.fetch(loading.find_manifest(name)))


@app.command("verify", epilog=_examples("zoo verify", "zoo verify droppos-vitb && echo fine"))
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: every model.")] = None,
) -> None:
    """Compare weights on disk with the recorded hashes, byte by byte.

    Exit code 1 if a file is damaged, or if a model that was named is not there.
    """
    failed = False
    for name in names or catalog.list_models():
        status, detail = hub.verify(loading.find_manifest(name))
        failed |= status == "damaged" or (status == "not cached" and bool(names))
        print(f"{status}\t{name}\t{detail}")
    if failed:
        raise typer.Exit(1)


@app.command("add", epilog=_examples("zoo add droppos-vitb ~/Downloads/checkpoint.pth"))
def add(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint that you downloaded.")],
) -> None:
    """Put a checkpoint that you downloaded by hand into the cache.

    Its architecture is checked and its sha256 recorded; `zoo.load(NAME)` works from then on.
    """
    stored = loading.add(name, file)
    print(f"{name} is ready: {stored}")


@app.command(
    "embed",
    epilog=_examples(
        "zoo embed droppos-vitb photos/ -o features.npz",
        "zoo embed runs/my_run a.png b.png -o features.parquet --device cuda",
        "zoo embed electra-small-discriminator sentences.txt --lines -o features.npz",
    ),
)
def embed(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, manifest, .ckpt or run folder.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Files, or folders to take all files of.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="features.npz or features.parquet.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Files that go through the model at once.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    pattern: Annotated[str, typer.Option(help="Which files of a folder, such as '*.png'.")] = "*",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Text: every line is a sample, named FILE:NUMBER.")] = False,
    force: ForceOption = False,
) -> None:
    """Compute a model's features of files, or of the lines of text files.

    npz holds `files` and `features`, one row a file; parquet the columns `file` and `feature`.
    """
    from zoo.cli.embed import embed_files, expand, lines_of, make_folder, write_features

    if output.suffix not in (".npz", ".parquet"):
        raise ZooError(f"The output is a .npz or .parquet file, not {output}.")
    if output.exists() and not force:
        raise ZooError(f"{output} exists already: choose another name, or overwrite it with --force.")
    found = expand(files, pattern)
    paths = lines_of(found) if lines else found
    make_folder(output)
    model = loading.load(name)
    done, features, skipped = embed_files(model, paths, batch_size=batch_size, device=device, skip_bad=skip_bad)
    write_features(output, done, features)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    count = f", {len(skipped)} skipped" if skipped else ""
    print(f"{output}: {features.shape[0]} {'lines' if lines else 'files'} x {features.shape[1]} features{count}")


@app.command(
    "classify",
    epilog=_examples("zoo classify clip2point-vitb32 a.off --labels chair,mug", "zoo classify RUN a.obj"),
)
def classify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, manifest, .ckpt or run folder.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="OFF, PLY, OBJ, STL, XYZ or NPY files.")],
    labels: Annotated[str | None, typer.Option(help="Names to choose from, as chair,mug,lamp.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many names to show for a file.")] = 3,
    z_up: Annotated[bool, typer.Option("--z-up", help="The shapes are z-up, as ModelNet's are.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say which of some names fits a shape (OFF, PLY, OBJ, STL, XYZ, NPY).

    A pre-trained encoder takes any names (--labels); a model that was trained on classes knows its own.
    """
    from zoo.cli.classify import classify_files

    classify_files(name, files, labels, top=top, z_up=z_up, device=device, as_json=as_json)


@app.command(
    "export",
    epilog=_examples(
        "zoo export runs/droppos/quickstart/20250101-120000 --name digits-vit -o models",
        "zoo export runs/my_task --format onnx -o model.onnx",
    ),
)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A training checkpoint or run folder.")],
    name: Annotated[str | None, typer.Option(help="Name of the model (--format weights).")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to; a file for onnx, torch.")] = Path(
        "."
    ),
    format: Annotated[
        ExportFormat, typer.Option(help="weights, or a file that runs without the zoo.")
    ] = ExportFormat.weights,
    dtype: Annotated[DType, typer.Option(help="How to store the weights.")] = DType.fp32,
    title: Annotated[str | None, typer.Option(help="One line for people.")] = None,
    trained_on: Annotated[str | None, typer.Option(help="Data set and length of training.")] = None,
    license: Annotated[str | None, typer.Option(help="SPDX name of the licence of the weights.")] = None,
    force: ForceOption = False,
) -> None:
    """Turn a training checkpoint into weights and a manifest that `zoo.load` takes; or into ONNX or torch.export.

    onnx (.onnx) and torch (.pt2) run without the zoo. They are compared with the model and kept only if they give its
    numbers; FILE.json beside them says what goes in, and the classes and normalisation.
    """
    if format != ExportFormat.weights:
        from zoo.exporting import export_model

        gap = export_model(loading.load(checkpoint), output, format.value, force=force)
        size = f"{output.stat().st_size / 1e6:.1f} MB"
        print(f"{output} ({size}), {output}.json\nDiffers from the model by at most {gap:.1e}.")
        return
    if name is None:
        raise ZooError("Weights need a name: --name my-model.")
    manifest = loading.export(
        checkpoint,
        name,
        output,
        dtype=dtype.value,
        title=title,
        trained_on=trained_on,
        license=license,
        force=force,
    )
    weights = manifest.with_suffix(".safetensors")
    print(f"{manifest}\n{weights} ({weights.stat().st_size / 1e6:.1f} MB)\nLoad it: zoo.load({str(manifest)!r})")


app.command("reconstruct", epilog=_examples("zoo reconstruct bm-mae-vitb BraTS2021_00000 -o predicted --from t1ce,t2"))(
    volumes.reconstruct
)
app.command("compare", epilog=_examples("zoo compare runs/pretrained runs/from_scratch"))(compare.compare)
app.command("folds", epilog=_examples("zoo folds runs/fold0 runs/fold1 runs/fold2 -o curves.png"))(folds.folds)
app.command("segment", epilog=_examples("zoo segment runs/my_segmentation subjects/ -o masks"))(volumes.segment)
app.command(
    "predict",
    epilog=_examples(
        "zoo predict RUN photos/ -o classes.csv",
        "zoo predict RUN texts.txt -o classes.tsv",
        "zoo predict RUN GLUE --glue mnli -o submission",
    ),
)(predict)
app.command(
    "check",
    epilog=_examples("zoo check my_task/recipe.yaml", "zoo check droppos/finetune_classification --data.root PHOTOS"),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(check)
app.command(
    "kfold",
    epilog=_examples("zoo kfold my_task/recipe.yaml --folds 5"),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(kfold)
app.command("retrieval", epilog=_examples("zoo retrieval droppos-vit-cifar10 photos/ -o found"))(retrieval)
app.command("new", epilog=_examples("zoo new", "zoo new image-classification --from droppos-vit-cifar10 my_task"))(new)
app.command("tokenizer", epilog=_examples("zoo tokenizer my_text/ -o tokenizer.json --vocab-size 8000"))(tokenizer)


def _model_or_recipe(name: str) -> catalog.Manifest | catalog.Recipe:
    models, recipes = catalog.list_models(), catalog.list_recipes()
    if name in recipes:
        return catalog.recipe_info(name)
    if name in models or name.endswith((".yaml", ".yml")):
        return loading.find_manifest(name)
    raise ZooError(
        f"There is no model or recipe {name!r}.{did_you_mean(name, [*models, *recipes])} "
        "`zoo ls` and `zoo ls recipes` list them all."
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
