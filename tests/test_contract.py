"""What every paper must pass (CONTRIBUTING.md, "What the suite asks of a room"). Knows no paper by name."""

from __future__ import annotations

import copy
import csv
import importlib
import json
import math
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_contract import KILL_AT, Room, checkpoint_difference, import_without, in_processes, printed
from support_docs import check_command, documented_commands
from support_steps import Draws, batch_size, replace_sample, split_batch

import zoo
from zoo import catalog
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.loading import build as build_model
from zoo.loading import export
from zoo.module import ZooModule, count_parameters, import_class

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", params=catalog.list_papers())
def room(request, tmp_path_factory) -> Room:
    return Room(request.param, tmp_path_factory.mktemp(request.param))


def load_checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    clock = re.compile(r"time|sec|throughput|memory|mfu|flops")
    rows = csv.DictReader((run / "metrics.csv").open())
    return [{key: value for key, value in row.items() if not clock.search(key)} for row in rows]


# ---------------------------------------------------------------------- the quickstart


def test_quickstart_leaves_numbers_pictures_and_weights(room):
    run = room.finished
    rows = json.loads((run / "results.json").read_text())
    assert rows, "results.json is empty"
    for row in rows:
        assert {"name", "value", "baseline", "baseline_name"} <= set(row)
        assert abs(row["value"]) < float("inf")
        assert abs(row["baseline"]) < float("inf")
    assert list((run / "figures").glob("*.png")), "no picture in figures/"
    assert list(csv.DictReader((run / "metrics.csv").open()))
    assert (run / "config.yaml").is_file()
    assert load_checkpoint(run)["global_step"] > 0


def test_killed_and_resumed_equals_never_killed(room):
    run = room.run("killed", kill_at=KILL_AT)
    middle = run / "checkpoints" / "epoch0001-batch000002.ckpt"
    assert middle.is_file()
    room.resume(run)
    expected, found = load_checkpoint(room.finished), load_checkpoint(run)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "loops"):
        assert not checkpoint_difference(expected[part], found[part], part)
    assert metrics(room.finished) == metrics(run), f"metrics.csv differs after going on from {middle.name}"


def test_killed_while_reporting_and_resumed_reports_the_same(room):
    """All that training leaves is there, nothing of what comes after it."""
    run = room.folder / "unreported"
    shutil.copytree(room.finished, run, ignore=shutil.ignore_patterns("results*", "report*", "figures"))
    room.resume(run)
    for path in room.finished.glob("results*.json"):
        assert json.loads((run / path.name).read_text()) == json.loads(path.read_text()), path.name
    pictures = {path.name for path in (room.finished / "figures").iterdir()}
    assert {path.name for path in (run / "figures").iterdir()} == pictures
    assert metrics(room.finished) == metrics(run)


# ---------------------------------------------------------------------- seeds


def test_the_same_seed_draws_the_same_and_another_seed_does_not(room):
    (order, same), (_, again), (other_order, other) = (room.ordered_batches(seed) for seed in (0, 0, 1))
    assert not checkpoint_difference(same, again), "the same seed gives other batches"
    assert checkpoint_difference(same, other), "another seed gives the same batches"
    assert checkpoint_difference(same[0], same[1]), "all batches are the same"
    if order is not None and order != sorted(order):  # else the index says what is drawn, not which is taken
        assert order != other_order, "another seed gives the same order of samples"
    first, second, third = room.steps(same, 0), room.steps(same, 0), room.steps(same, 1)
    assert not checkpoint_difference(first.tapes, second.tapes), "the same seed gives other draws in training_step"
    assert not checkpoint_difference(first.state, second.state), "the same seed gives other weights"
    assert not same_draws(first.tapes[0], third.tapes[0]), "draws in training_step do not follow the seed"
    assert not same_draws(first.tapes[0], first.tapes[1]), "every step draws the same"


def same_draws(first: list[torch.Tensor], second: list[torch.Tensor]) -> list[tuple[int, ...]]:
    """Shapes of the draws that are equal in both; few values can be so by chance."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if a.shape == b.shape and a.unique().numel() >= 8]
    return [tuple(a.shape) for a, b in pairs if torch.equal(a, b)]


# ---------------------------------------------------------------------- devices


def test_two_processes_equal_one(room):
    if room.build()[0].per_device_loss:
        halves = [half for batch in room.whole for half in split_batch(room.ready, batch, 2)]
        one = room.steps(halves, hold_batch_norm=room.hold_batch_norm, accumulate_grad_batches=2)
    else:
        one = room.steps(room.whole, hold_batch_norm=room.hold_batch_norm)
    two, other = room.two_processes(one.tapes)
    assert not checkpoint_difference(two.state, other.state), "the two processes end with different weights"
    unlike = {name for name, value in two.metrics.items() if value != other.metrics.get(name) and value == value}
    assert not unlike, f"each process logs its own {', '.join(sorted(unlike))}: validation needs sync_dist=True"
    assert two.rates == one.rates
    assert len(two.gradients) == len(one.gradients)
    for step, (mine, theirs) in enumerate(zip(one.gradients, two.gradients, strict=True)):
        assert set(mine) == set(theirs)
        error, norm = {}, total(mine)
        for name in mine:
            error[name] = (mine[name] - theirs[name]).norm() / (mine[name].norm() + 1e-4 * norm)
        worst = max(error, key=lambda name: error[name])
        # Rounding grows from step to step; what is wrong shows in the first.
        assert error[worst] < 1e-4 * 10**step, f"step {step}: the gradient of {worst} differs by {error[worst]:.2%}"


def test_every_sample_and_every_parameter_counts(room):
    whole = room.steps(room.whole[:2])  # some schedules refuse a single step
    assert not whole.forgotten, f"no optimiser has {', '.join(sorted(whole.forgotten)[:5])}"
    if hasattr(room.ready, "split_batch"):
        return  # laid out otherwise: one cannot say here where a sample is
    size = batch_size(room.whole[0])
    for lost in (0, size // 2, size - 1):
        other = replace_sample(room.whole[0], size, lost, (lost + 1) % size)
        changed = room.steps([other, room.whole[1]], replay=lambda index: Draws(whole.tapes[index]))
        same = changed.losses[:1] == whole.losses[:1]
        same = same and not checkpoint_difference(changed.gradients[0], whole.gradients[0])
        assert not same, f"sample {lost} of {size} has no part in the step"


def test_validation_leaves_no_trace(room):
    if not room.val_batches:
        pytest.skip("no validation in the quickstart")
    alone = room.steps(room.whole[:2])
    validated = room.steps(room.whole[:2], val_batches=room.val_batches)  # after the second step
    assert not checkpoint_difference(dict(alone.state), dict(validated.state)), "validation changes the state dict"


def total(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([value.norm() for value in gradients.values()]).norm()


# ---------------------------------------------------------------------- precision


def test_half_precision_keeps_the_loss_and_every_gradient(room):
    full = room.steps(room.whole[:2], watch=True)
    half = room.steps(room.whole[:2], replay=lambda index: Draws(full.tapes[index]), precision="bf16-mixed", watch=True)
    assert not half.half, f"the loss computes {', '.join(sorted(half.half))}: see zoo.module.full_precision"
    for a, b in zip(full.losses, half.losses, strict=True):
        assert b == pytest.approx(a, rel=0.05, abs=0.02)
    for mine, theirs in zip(full.gradients, half.gradients, strict=True):
        lost = [name for name in mine if mine[name].any() and not (name in theirs and theirs[name].any())]
        assert not lost, f"without gradient under bf16: {', '.join(lost[:5])}"
        assert all(value.isfinite().all() for value in theirs.values())


def test_the_loss_survives_fp16(room):
    full = room.steps(room.whole[:2])
    half = room.steps(room.whole[:2], replay=lambda index: Draws(full.tapes[index]), autocast=torch.float16, watch=True)
    assert not half.half, f"the loss computes {', '.join(sorted(half.half))}: see zoo.module.full_precision"
    assert all(math.isfinite(loss) for loss in half.losses)
    for a, b in zip(full.losses, half.losses, strict=True):
        assert b == pytest.approx(a, rel=0.02, abs=0.01)


# ---------------------------------------------------------------------- weights


def test_load_and_export_give_the_trained_model_back(room, tmp_path):
    trained = load_checkpoint(room.finished)["state_dict"]
    module, _ = room.build()
    loaded = zoo.load(room.finished)
    assert type(loaded) is type(module)
    assert not checkpoint_difference(_arguments(module), _arguments(loaded))
    for key, value in room.config["model"]["init_args"].items():
        assert key in loaded.hparams, f"save_hyperparameters() leaves out {key}"
        if value is None or isinstance(value, bool | int | float | str | list):
            assert _arguments(loaded)[key] == value, f"{key} was {value} and is loaded as {loaded.hparams[key]}"
    assert not loaded.training
    assert not checkpoint_difference(dict(trained), dict(loaded.state_dict()))
    manifest = export(room.finished, "mine", tmp_path)
    again = zoo.load(manifest)
    assert not checkpoint_difference(dict(trained), dict(again.state_dict()))
    assert not checkpoint_difference(_arguments(loaded), _arguments(again))
    given = loaded.preprocess(room.ready.raw_sample())
    with torch.no_grad():
        first, second = loaded(given), again(given)
    assert first.shape[0] == 1, f"one sample gives features of shape {tuple(first.shape)}"
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert any(loaded.backbone is part for part in loaded.modules())


def _arguments(module: ZooModule) -> Any:
    return json.loads(json.dumps({key: value for key, value in module.hparams.items() if key[0] != "_"}, default=str))


def test_official_names_there_and_back(room):
    module, _ = room.build()
    classes = {type(module)}
    for name in catalog.paper_info(room.slug).models:
        manifest = zoo.info(name)
        cls = import_class(manifest.class_path)
        classes.add(cls)
        if manifest.format == "official":
            assert _overrides(cls, "convert_state_dict"), f"{name} is official, but {cls.__name__} converts nothing"
            with torch.device("meta"):
                full = cls(**manifest.init_args)
            shapes = {key: value.shape for key, value in full.convert_state_dict(full.official_state_dict()).items()}
            assert shapes == {key: value.shape for key, value in full.state_dict().items()}, name
    for cls in classes:
        both = {_overrides(cls, "convert_state_dict"), _overrides(cls, "official_state_dict")}
        assert len(both) == 1, f"{cls.__name__} converts official names one way only"
    torch.manual_seed(1)
    official = {key: value.clone() for key, value in _randomised(module).official_state_dict().items()}
    fresh, _ = room.build(seed=3)
    fresh.load_weights(official)
    assert not checkpoint_difference(dict(module.state_dict()), dict(fresh.state_dict()))


def _overrides(cls: type, method: str) -> bool:
    return getattr(cls, method) is not getattr(ZooModule, method) and (
        getattr(getattr(cls, method), "__func__", getattr(cls, method))
        is not getattr(getattr(ZooModule, method), "__func__", getattr(ZooModule, method))
    )


def _randomised(module: ZooModule) -> ZooModule:
    """Every floating-point value its own, so that exchanged or shared ones show."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.1)
    return module


MUTATIONS = ("drop", "rename", "reshape", "add", "wrap")


def test_no_damaged_state_dict_loads_in_part(room):
    module, _ = room.build()
    target, _ = room.build(seed=3)
    before = copy.deepcopy(target.state_dict())
    sources = {"ours": module.state_dict(), "official": module.official_state_dict()}

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        names=st.sampled_from(sorted(sources)),
        changes=st.lists(st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 10**6)), min_size=1, max_size=4),
    )
    def check(names: str, changes: list[tuple[str, int]]) -> None:
        state = dict(sources[names])
        for kind, number in changes:
            _damage(state, kind, number)
        try:
            target.load_weights(state)
        except ZooError:
            assert not checkpoint_difference(dict(before), dict(target.state_dict())), "refused, but loaded in part"
        else:
            assert not checkpoint_difference(dict(module.state_dict()), dict(target.state_dict())), changes
            target.load_state_dict(before)

    check()


def _damage(state: dict[str, Any], kind: str, number: int) -> None:
    key = sorted(state)[number % len(state)]
    if kind == "drop":
        del state[key]
    elif kind == "rename":
        state[key + "x"] = state.pop(key)
    elif kind == "reshape":
        state[key] = torch.zeros((*state[key].shape, 2))
    elif kind == "add":
        state[f"{key}.more"] = torch.zeros(1)
    else:
        for name in list(state):
            state[f"module.{name}"] = state.pop(name)


# ---------------------------------------------------------------------- wrong input


def fails(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2, f"exit code {stop.value.code} for {' '.join(argv)}"
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    return error


def test_wrong_settings_are_one_line(room, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("logging.raiseExceptions", False)
    arguments = ["run", room.quickstart, "--run-dir", str(tmp_path / "run"), *room.overrides()]
    assert "Did you mean" in fails(capsys, *arguments, "--trainer.max_epoch", "1")
    for section in ("model", "data"):
        settings_ = room.config[section]["init_args"]
        name = next(key for key in settings_ if len(key) > 4)
        assert name in fails(capsys, *arguments, f"--{section}.{name[:-1]}", "1")
        for key, value in settings_.items():
            if type(value) in (int, float):
                assert key in fails(capsys, *arguments, f"--{section}.{key}", "many")
                break
    assert "batch_size" in fails(capsys, *arguments, "--data.batch_size", "0")
    for key, value in room.config["data"]["init_args"].items():
        if isinstance(value, str) and re.search(r"(^|_)(root|path|dir|file|folder)$", key):
            missing = str(tmp_path / "nowhere")
            assert missing in fails(capsys, *arguments, f"--data.{key}", missing)


def test_preprocess_refuses_what_it_cannot_read(room, tmp_path):
    module, _ = room.build()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 8)
    for raw in (None, object(), [], tmp_path / "missing", tmp_path / "empty", tmp_path / "noise.bin"):
        with pytest.raises(ZooError) as caught:
            module.preprocess(raw)
        assert len(str(caught.value)) > 10, raw


# ---------------------------------------------------------------------- papers on the shelf


def test_imports_alone_and_without_its_extra(room):
    package = importlib.import_module(f"zoo.papers.{room.slug}")
    exported = [getattr(package, name) for name in package.__all__]
    assert any(isinstance(value, type) and issubclass(value, ZooModule) for value in exported)
    in_processes([(import_without, room.slug, room.config)], room.folder)


def test_manifests_are_complete_and_load(room):
    for name in catalog.paper_info(room.slug).models:
        manifest = zoo.info(name)
        for fact in ("license", "citation", "url", "input", "parameters", "trained_on"):
            assert getattr(manifest, fact), f"{name}: {fact}"
        assert manifest.paper == room.slug == manifest.path.parent.name
        assert manifest.verified or manifest.notes, f"{name} is not verified and does not say why"
        if manifest.source.kind == "file":
            model = zoo.load(name)
            assert manifest.sha256, f"{name}: sha256"
        else:
            with torch.device("meta"):
                model = build_model(manifest.class_path, manifest.init_args, name)
        assert count_parameters(model) == manifest.parameters, name


def test_page_and_citation_are_complete(room):
    page = ROOT / "zoo" / "papers" / room.slug / "README.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    identifiers = re.findall(r"\b\d{4}\.\d{4,5}\b|\b10\.\d{4,}/[^\s)]+", text)
    assert identifiers, "no arXiv number and no DOI"
    assert re.search(r"(?i)official code", text)
    headings = " | ".join(re.findall(r"^#+ (.*)$", text, re.M)).lower()
    for wanted in (r"measured", r"paper's results|results of the paper", r"differ|depart"):
        assert re.search(wanted, headings), f"no section on {wanted}: {headings}"
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    for page_text in (text, front):
        prose = re.sub(r"```.*?```", "", page_text, flags=re.S)
        holes = re.findall(r"(?m)^[ |]*[A-Z]{4,}[ |]*$|\| [A-Z]{6,} \||\bTODO\b|\bTBD\b|\bXXX\b", prose)
        assert not holes, f"placeholders: {holes}"
    known = catalog.paper_info(room.slug)
    assert f"zoo/papers/{room.slug}/README.md" in front, "the README of the zoo does not lead to the room"
    families = re.findall(r"`([\w.*-]+\*[\w.*-]*)`", front)  # many of one kind stand there as a pattern
    for name in known.models:
        named = name in front or any(fnmatchcase(name, family) for family in families)
        assert named, f"the README of the zoo does not name {name}"
    for name in [*known.models, *known.recipes]:
        assert name in text or name.split("/")[-1] in text, f"{page.name} does not name {name}"
    if room.build()[0].per_device_loss:
        assert "device" in text, "the README does not say why the loss is per device"
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    mine = [entry for entry in references if any(number in json.dumps(entry) for number in identifiers)]
    assert mine, f"CITATION.cff has no reference with {' or '.join(identifiers[:3])}"
    assert all(entry.get(key) for entry in mine for key in ("title", "authors", "year"))


def test_every_documented_command_parses(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages = [ROOT / "zoo" / "papers" / room.slug / "README.md"]
    commands = documented_commands(pages[0].read_text(encoding="utf-8"))
    known = catalog.paper_info(room.slug)
    assert any(f"lightning run {room.quickstart}" in command for command in commands)
    for name in known.recipes:
        header = yaml.safe_load(catalog.recipe_info(name).path.read_text(encoding="utf-8"))["recipe"]
        for line in header.get("next") or []:
            commands.append(re.split(r"\s{2,}", line.replace("{run}", "RUN_FOLDER"))[0])
    for command in dict.fromkeys(commands):
        check_command(command)


def test_commands_of_the_front_pages_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        for command in documented_commands((ROOT / page).read_text(encoding="utf-8")):
            check_command(command)


def test_every_recipe_parses_and_those_with_a_smoke_entry_run(room):
    for name in catalog.paper_info(room.slug).recipes:
        if name == room.quickstart:
            continue
        config = yaml.safe_load(printed("run", name, "--print-config"))
        assert config["recipe"]["title"], name
        if config["recipe"].get("smoke"):
            stage = name.split("/")[-1]
            more = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
            more += ["--trainer.limit_test_batches", "1"]
            room.run(stage, *more, recipe=name)
