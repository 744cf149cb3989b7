"""`zoo new`: every task gives a recipe that its classes take, and a README whose commands parse."""

from __future__ import annotations

import pytest
import yaml
from support_docs import check_command, documented_commands

from zoo import catalog
from zoo.cli.app import main
from zoo.errors import ZooError
from zoo.recipes import find_recipe, read_recipe
from zoo.starters import STARTERS, find_starter, fitting_models, write_starter

NAMES = [starter.task for starter in STARTERS]


@pytest.mark.parametrize("task", NAMES)
def test_every_task_writes_a_recipe_and_a_readme(task, tmp_path):
    starter = find_starter(task)
    for model in fitting_models(starter)[:: max(1, len(fitting_models(starter)) // 3)]:
        recipe, readme = write_starter(task, model, tmp_path / model)
        text = recipe.read_text()
        config = read_recipe(recipe)  # every key is known to the classes
        model_args, data_args = config["model"]["init_args"], config["data"]["init_args"]
        assert model in (model_args.get("backbone"), model_args.get("pretrained"))
        assert data_args["root"] == str(tmp_path / model / "data")
        assert (tmp_path / model / "data").is_dir()
        for number, key in enumerate(starter.comments, 1):
            assert f"#   {number}. {key}: " in text
            # A setting that the recipe leaves at its default has no line of its own to mark.
            assert text.count(f"# <- {number}") <= 1
        assert text.count("# <- ") >= 4
        assert any(c["class_path"].endswith("Report") for c in config["trainer"]["callbacks"])
        page = readme.read_text()
        assert starter.layout in page
        commands = [command for command in documented_commands(page) if "kfold" not in command]
        assert len(commands) >= 3
        for command in commands:
            if command.startswith("zoo"):
                check_command(command)


@pytest.mark.parametrize("task", NAMES)
def test_the_recipe_follows_the_rooms_own(task, tmp_path):
    """No copy that drifts: what the starter does not set is the room's."""
    starter = find_starter(task)
    model = fitting_models(starter)[0]
    manifest = catalog.info(model)
    variant = starter.variant(manifest.class_path)
    recipe, _ = write_starter(task, model, tmp_path / "task")
    mine, theirs = yaml.safe_load(recipe.read_text()), read_recipe(find_recipe(variant.recipe))
    for section in ("model",) if variant.data else ("model", "data"):
        assert mine[section]["class_path"] == theirs[section]["class_path"]
        ours = {"tuning", "root", variant.model_key, "max_length"}
        ours |= {key.split(".")[1] for key in [*variant.settings, *variant.from_model]}
        for key, value in theirs[section]["init_args"].items():
            assert key in ours or mine[section]["init_args"][key] == value


def test_a_model_that_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(ZooError, match=r"electra-docs \(Electra\) does not fit image-classification: it takes droppos"):
        write_starter("image-classification", "electra-docs", tmp_path / "a")
    with pytest.raises(ZooError, match=r"does not fit image-segmentation: it takes droppos"):
        write_starter("image-segmentation", "clip2point-shapes", tmp_path / "a")
    with pytest.raises(ZooError, match="Did you mean 'text-tagging'"):
        write_starter("text-taging", "electra-docs", tmp_path / "a")
    with pytest.raises(ZooError, match="no model"):
        write_starter("text-tagging", "electra-doc", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_nothing_is_overwritten(tmp_path):
    write_starter("text-tagging", "electra-docs", tmp_path)
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(ZooError, match="--force"):
        write_starter("text-tagging", "electra-docs", tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_without_a_task_all_are_listed(capsys):
    main(["new"])
    out = capsys.readouterr().out
    for name in NAMES:
        assert name in out
    assert "bert_uncased_L-*" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["text-tagging"], "--from"), (["text-tagging", "--from", "electra-docs"], "where to"), (["nothing"], "--list")],
)
def test_what_is_missing_is_asked_for(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["new", *arguments])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
