"""Systems, rendering, colours, pictures, loss and schedule beside what the official code recorded."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.fractals import colour as colours
from datamodules.fractals import torch_pictures as tensors
from datamodules.fractals.pictures import Layout, Placed, compose
from datamodules.fractals.rendering import STAMP_CELLS, chaos_game, count_points, draw_choices, render
from datamodules.fractals.systems import (
    fixed_point,
    jitter_system,
    probabilities,
    sample_singular_values,
    sample_singular_values_uniform,
    sample_system,
    sigma_factor,
    singular_values_of,
)
from datamodules.fractals.torch_renderer import count_points as count_tensors
from datamodules.fractals.torch_renderer import stamp_grid
from zoo.papers.fractals.losses import multi_hot, multi_instance_loss

pytestmark = pytest.mark.golden
EXACT = dict(rtol=0, atol=1e-12)
JITTER_NAMES = {"True": "scale"}  # the official code calls its default kind just True


def cases(folder: Path, key: str) -> list[tuple[str, dict]]:
    """Every recorded case of the folder that holds `key`."""
    loaded = [(path.stem, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in loaded if key in case]
    if not found:
        pytest.skip(f"no case with {key!r} in {folder}")
    return found


def numbered(case: dict, prefix: str) -> list[int]:
    return sorted(
        int(key.removeprefix(prefix)) for key in case if key.startswith(prefix) and key[len(prefix) :].isdigit()
    )


def test_systems(golden_dir):
    for _, case in cases(golden_dir("fractals"), "cases_json"):
        for entry in json.loads(case["cases_json"]):
            seed, n, beta = entry["seed"], entry["n"], ast.literal_eval(entry["beta"])
            numbers = (
                range(*ast.literal_eval(n.removeprefix("range"))) if n.startswith("range") else ast.literal_eval(n)
            )
            system = sample_system(np.random.default_rng(seed), numbers, beta=beta)
            np.testing.assert_allclose(system, case[f"system_{seed}"].numpy(), **EXACT, err_msg=str(entry))
            expected = case[f"singular_values_{seed}"].numpy()
            np.testing.assert_allclose(singular_values_of(system), expected, rtol=0, atol=1e-9)
            assert abs(sigma_factor(system) - case[f"sigma_factor_{seed}"]) < 1e-9
        for name, draw, base in (
            ("svs", sample_singular_values, 100),
            ("svsrej", sample_singular_values_uniform, 200),
        ):
            for i in numbered(case, f"{name}_"):
                values = draw(case[f"{name}_n_{i}"], case[f"{name}_a_{i}"], np.random.default_rng(base + i))
                np.testing.assert_allclose(values, case[f"{name}_{i}"].numpy(), **EXACT, err_msg=f"{name} {i}")
        for key in (key for key in case if key.startswith("unconstrained_seed")):
            seed, n = (int(part) for part in key.removeprefix("unconstrained_seed").split("_n"))
            system = sample_system(np.random.default_rng(seed), n, constrain=False)
            np.testing.assert_allclose(system, case[key].numpy(), **EXACT)


def test_jitter(golden_dir):
    for _, case in cases(golden_dir("fractals"), "True_0_in"):
        for key in (key for key in case if key.endswith("_in")):
            name, stem = key.rsplit("_", 2)[0], key.removesuffix("_in")
            rng = np.random.default_rng(case[f"{stem}_seed"])
            jittered = jitter_system(case[key].numpy(), JITTER_NAMES.get(name, name), rng)
            np.testing.assert_allclose(jittered, case[f"{stem}_out"].numpy(), **EXACT, err_msg=stem)


def test_chaos_game_and_counts(golden_dir):
    for name, case in cases(golden_dir("fractals"), "choices"):
        system, choices = case["system"].numpy(), case["choices"].numpy()
        np.testing.assert_allclose(probabilities(system), case["probs"].numpy(), **EXACT)
        np.testing.assert_allclose(fixed_point(system), case["start_point"].numpy(), rtol=0, atol=1e-9)
        stream = np.random.RandomState(case["numba_seed"])
        np.testing.assert_array_equal(draw_choices(system, case["n_iter"], stream), choices, err_msg=name)

        points = chaos_game(system, choices)
        for ours, key in (
            (points.xy[:64], "coords_first64"),
            (points.xy[-64:], "coords_last64"),
            (points.xy[::500], "coords_every500"),
            (points.bounds[:2], "coord_min"),
            (points.bounds[2:], "coord_max"),
            (points.xy.mean(axis=0), "coord_mean"),
        ):
            np.testing.assert_allclose(ours, case[key].numpy(), rtol=0, atol=1e-9, err_msg=f"{name}: {key}")
        for size in numbered(case, "counts_"):
            counts = count_points(points, size)[1:-1, 1:-1]
            np.testing.assert_array_equal(counts, case[f"counts_{size}"].numpy(), err_msg=f"{name}: {size}")
            assert counts.sum() == case["n_iter"]
            assert (counts > 0).sum() == case[f"occupied_{size}"]
            assert counts.max() == case[f"max_count_{size}"]


def test_regions_and_stamps(golden_dir):
    for name, case in cases(golden_dir("fractals"), "region_zoom"):
        points = chaos_game(case["system"].numpy(), case["choices"].numpy())
        random_stamp = STAMP_CELLS[case["patch_bits"].numpy()]
        for key, size, arguments in (
            ("graded_zoom_112", 112, dict(region=case["region_zoom"].numpy())),
            ("graded_patch_112", 112, dict(stamp=case["patch_offsets"].numpy())),
            ("graded_randpatch_64", 64, dict(stamp=random_stamp)),
        ):
            image, _ = render(points, size, **arguments)
            np.testing.assert_allclose(image, case[key].numpy(), rtol=0, atol=1e-7, err_msg=f"{name}: {key}")
        _, lit = render(points, 112, stamp=case["patch_offsets"].numpy())
        assert lit == case["binary_patch_112_sum"], name


def test_object_colours(golden_dir):
    for name, case in cases(golden_dir("fractals"), "hsv_64"):
        stream = np.random.RandomState(case["colour_seed"])
        colour = colours.draw_object_colour(stream)
        assert abs(colour.hue_shift - case["hue_shift"]) < 1e-9
        assert (colour.saturation, colour.value) == (case["sat_u8"], case["val_u8"])
        counts = case["counts_64"].numpy()
        hsv = colours.object_hsv(counts / counts.max(), colour)
        np.testing.assert_array_equal(hsv, case["hsv_64"].numpy(), err_msg=name)
        np.testing.assert_array_equal(colours.hsv_to_rgb(hsv), case["rgb_64"].numpy(), err_msg=name)
        painted = colours.colour_object(counts / counts.max(), colour)
        np.testing.assert_array_equal(painted, case["rgb_64"].numpy(), err_msg=name)


def test_backgrounds(golden_dir):
    for _, case in cases(golden_dir("fractals"), "ds_0"):
        for i in numbered(case, "ds_"):
            levels, decay, fixed = (case[f"ds_{i}_{key}"] for key in ("n", "decay", "fixed_corners"))
            stream = np.random.RandomState(case[f"ds_{i}_numba_seed"])
            uniforms = stream.random_sample(colours.num_uniforms(levels, fixed))
            field = colours.diamond_square(levels, decay, uniforms, fixed)
            np.testing.assert_allclose(field, case[f"ds_{i}"].numpy(), **EXACT, err_msg=f"field {i}")
            draws = case[f"ds_{i}_colour_draws"].tolist()
            colour = colours.FieldColour(tuple(draws[::2]), tuple(draws[1::2]))
            expected = case[f"ds_{i}_hsv"].numpy()
            hsv = colours.field_hsv(case[f"ds_{i}"].numpy()[: len(expected), : len(expected)], colour)
            np.testing.assert_array_equal(hsv, expected, err_msg=f"field {i}")
            np.testing.assert_array_equal(colours.hsv_to_rgb(hsv), case[f"ds_{i}_rgb"].numpy())


def test_pasting(golden_dir):
    for _, case in cases(golden_dir("fractals"), "fg"):
        out = colours.paste(case["fg"].numpy(), case["bg"].numpy().copy())
        np.testing.assert_array_equal(out, case["out"].numpy())


def recorded_layout(log: list, colour_draws: list) -> tuple[int, list, float | None]:
    """The draws of a picture in the order in which the official code took them."""
    draws = iter(log)

    def take() -> list[float]:
        return next(draws)[1]

    background, number = int(take()[0]), int(take()[0])
    objects = []
    for k in range(number):
        index = int(take()[0])
        flips = tuple(take()[0] > 0.5 for _ in range(3))
        share, (left, top) = take()[0], take()
        hue, saturation, value = colour_draws[k]
        colour = colours.ObjectColour(hue, int(saturation), int(value))
        objects.append((index, flips, colour, share, int(left), int(top)))
    blurred = take()[0] > 0.5
    return background, objects, take()[0] if blurred else None


def test_multi_instance_pictures(golden_dir):
    for name, case in cases(golden_dir("fractals"), "fg_cache"):
        fractals, backgrounds = case["fg_cache"].numpy(), case["bg_cache"].numpy()
        for k in numbered(case, "img_"):
            log, draws = json.loads(case[f"rng_log_json_{k}"]), case[f"colour_draws_{k}"].tolist()
            background, objects, sigma = recorded_layout(log, draws)
            placed = [Placed(i, f, c, int(share * case["size"]), x, y) for i, f, c, share, x, y in objects]
            picture = compose(Layout(background, tuple(placed), sigma), fractals.__getitem__, backgrounds.__getitem__)
            np.testing.assert_array_equal(picture, case[f"img_{k}"].numpy(), err_msg=f"{name}: picture {k}")
            assert case["labels_cache"][[p.index for p in placed]].tolist() == case[f"labels_{k}"].tolist()


# ---------------------------------------------------------------------- the same on tensors


def within_a_level(pictures: torch.Tensor, expected: np.ndarray, what: str) -> None:
    """(N, 3, H, W) beside (N, H, W, 3)."""
    difference = np.abs(pictures.permute(0, 2, 3, 1).numpy().astype(int) - expected)
    assert difference.max() <= 1, f"{what}: {difference.max()} levels, in {(difference > 1).mean():.2%} of values"


def test_tensor_counts_regions_and_stamps(golden_dir):
    """In float32: single points on the edge of a cell may fall on its other side."""
    for name, case in cases(golden_dir("fractals"), "choices"):
        points = chaos_game(case["system"].numpy(), case["choices"].numpy())
        xy = torch.from_numpy(np.ascontiguousarray(points.xy.T))[None]
        double = dict(dtype=torch.float64)
        for size in numbered(case, "counts_"):
            counts = count_tensors(xy, size, torch.tensor(points.bounds, **double)[None])[0, 1:-1, 1:-1]
            np.testing.assert_array_equal(counts, case[f"counts_{size}"].numpy(), err_msg=f"{name}: {size}")
            single = count_tensors(xy.float(), size, torch.tensor(points.bounds).float()[None])[0, 1:-1, 1:-1]
            assert (single - counts).abs().sum() <= 0.002 * case["n_iter"], f"{name}: {size}"
        random_stamp = np.zeros((3, 3), int)
        random_stamp[tuple(STAMP_CELLS[case["patch_bits"].numpy()].T)] = 1
        fixed_stamp = np.zeros((3, 3), int)
        fixed_stamp[tuple(case["patch_offsets"].numpy().T)] = 1
        for key, size, region, stamp in (
            ("graded_zoom_112", 112, case["region_zoom"].numpy(), np.eye(3) * [0, 1, 0]),
            ("graded_patch_112", 112, points.bounds, fixed_stamp),
            ("graded_randpatch_64", 64, points.bounds, random_stamp),
        ):
            grid = count_tensors(xy, size, torch.tensor(region, **double)[None])
            counts = stamp_grid(grid, torch.from_numpy(np.asarray(stamp).reshape(1, 9)))[0]
            np.testing.assert_allclose(counts / counts.max(), case[key].numpy(), atol=1e-7, err_msg=f"{name}: {key}")


def test_tensor_colours(golden_dir):
    for name, case in cases(golden_dir("fractals"), "hsv_64"):
        counts = case["counts_64"]
        shift = torch.tensor([case["hue_shift"]], dtype=torch.float64)
        bytes_ = (torch.tensor([case[key]]) for key in ("sat_u8", "val_u8"))
        painted = tensors.object_rgb((counts / counts.max())[None], shift, *bytes_)
        within_a_level(painted, case["rgb_64"].numpy()[None], name)


def test_tensor_backgrounds(golden_dir):
    for _, case in cases(golden_dir("fractals"), "ds_0"):
        for i in numbered(case, "ds_"):
            levels, decay, fixed = (case[f"ds_{i}_{key}"] for key in ("n", "decay", "fixed_corners"))
            stream = np.random.RandomState(case[f"ds_{i}_numba_seed"])
            uniforms = torch.from_numpy(stream.random_sample(colours.num_uniforms(levels, fixed)))[None]
            amplitudes = 0.5 * np.exp(decay * -np.arange(levels))
            cells = tensors.cells_of(uniforms, levels, fixed)
            field = tensors.diamond_square(levels, torch.from_numpy(amplitudes)[None], cells)
            np.testing.assert_allclose(field[0], case[f"ds_{i}"].numpy(), **EXACT, err_msg=f"field {i}")
            draws = torch.as_tensor(case[f"ds_{i}_colour_draws"], dtype=torch.float64).view(3, 2)
            expected = case[f"ds_{i}_rgb"].numpy()
            side = len(expected)
            rgb = tensors.field_rgb(case[f"ds_{i}"][None, :side, :side], draws[None, :, 0], draws[None, :, 1])
            within_a_level(rgb, expected[None], f"field {i}")


def test_tensor_pasting(golden_dir):
    for _, case in cases(golden_dir("fractals"), "fg"):
        height, width = case["bg"].shape[:2]
        size, zero = max(height, width), torch.tensor([0])
        square = (0, size - width, 0, size - height)  # black is not pasted
        fg, bg = (torch.nn.functional.pad(case[key].permute(2, 0, 1)[None], square) for key in ("fg", "bg"))
        canvas = tensors.pack_rgb(bg)
        tensors.paste(canvas, fg.int(), zero, zero, torch.tensor([size]), zero, zero)
        found = tensors.unpack_rgb(canvas)[0, :, :height, :width].permute(1, 2, 0)
        np.testing.assert_array_equal(found, case["out"].numpy())


def test_tensor_multi_instance_pictures(golden_dir):
    for name, case in cases(golden_dir("fractals"), "fg_cache"):
        size = case["size"]
        for k in numbered(case, "img_"):
            log, draws = json.loads(case[f"rng_log_json_{k}"]), case[f"colour_draws_{k}"].tolist()
            background, objects, sigma = recorded_layout(log, draws)
            canvas = tensors.pack_rgb(case["bg_cache"][background].permute(2, 0, 1)[None])
            for over, (index, flips, colour, share, x, y) in enumerate(objects):
                layer, side, left, top = (torch.tensor([value]) for value in (over, int(share * size), x, y))
                shares = tensors.flip(case["fg_cache"][index][None], torch.tensor([flips]))
                tint = (
                    torch.tensor([colour.hue_shift], dtype=torch.float64),
                    *(torch.tensor([value]) for value in (colour.saturation, colour.value)),
                )
                images = tensors.resize(tensors.object_rgb(shares, *tint), side, int(0.6 * size))
                tensors.paste(canvas, images, torch.tensor([0]), layer, side, left, top)
            picture = tensors.blur(tensors.unpack_rgb(canvas), torch.from_numpy(tensors.blur_weights([sigma])))
            within_a_level(picture, case[f"img_{k}"].numpy()[None], f"{name}: picture {k}")


def test_loss_and_gradient(golden_dir):
    for _, case in cases(golden_dir("fractals"), "logits_0"):
        for i in numbered(case, "logits_"):
            logits = case[f"logits_{i}"].clone().requires_grad_()
            labels = case[f"labels_padded_{i}"]
            targets = multi_hot(labels, logits.shape[1])
            torch.testing.assert_close(targets.int(), case[f"targets_{i}"], rtol=0, atol=0)
            loss = multi_instance_loss(logits, targets)
            loss.backward()
            torch.testing.assert_close(loss.detach(), case[f"loss_{i}"], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(logits.grad, case[f"grad_logits_{i}"], rtol=1e-5, atol=1e-8)


def test_schedules(golden_dir):
    from zoo.optim import one_cycle

    for _, case in cases(golden_dir("fractals"), "onecycle_pretrain_lr"):
        for stage in (key.removesuffix("_config") for key in case if key.endswith("_config")):
            config = json.loads(case[f"{stage}_config"])
            lr = config["max_lr"]
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
            scheduler = one_cycle(
                optimizer,
                config["total_steps"],
                warmup=config["pct_start"],
                final_div_factor=config["final_div_factor"],
            )
            for step in range(config["total_steps"]):
                assert abs(optimizer.param_groups[0]["lr"] - case[f"{stage}_lr"][step]) < 1e-9, (stage, step)
                assert abs(optimizer.param_groups[0]["momentum"] - case[f"{stage}_momentum"][step]) < 1e-9
                optimizer.step()
                if step + 1 < config["total_steps"]:
                    scheduler.step()
