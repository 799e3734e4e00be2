"""The stream of random-label tasks: what it writes, that it repeats itself and goes on to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.func import jacrev, vmap

from nap_rl.images import load_images
from nap_rl.studies import stream
from nap_rl.studies.config import SUMMARY, DataConfig, StudyConfig, validate
from nap_rl.studies.learner import Learner, gains_and_offsets

TINY = StudyConfig(
    data=DataConfig(name="digits", images=24),
    width=8,
    affine="free",
    batch_size=8,
    tasks=6,
    steps_per_task=4,
    save_every=2,
)
CASES = {
    "adam": TINY,
    "momentum_rms": replace(TINY, optimizer="momentum", norm="rms", learning_rate=0.05, affine="project"),
    "every": replace(TINY, project_every=3),
    "unprojected_cnn": replace(TINY, nap=False, norm="none", model="cnn", depth=1),
    "dead_units": replace(TINY, study="dead_units", measure_every=2),
    "affine_rate": replace(TINY, affine="project", affine_rate=0.1),
    "noisy": replace(TINY, method="noisy_updates"),
    "redo": replace(TINY, method="redo", options={"every": 3, "tau": 0.5}),
    "continual": replace(TINY, method="continual_backprop", options={"rate": 0.02, "maturity": 2}),
    "regenerative": replace(TINY, method="regenerative"),
    "crelu": replace(TINY, method="crelu"),
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


class Killed(BaseException):
    """Like a signal: nothing in the code under test may catch it."""


@pytest.mark.parametrize("case", CASES)
def test_killed_between_checkpoints_goes_on_to_the_same_bytes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CASES[case]
    stream.run(config, tmp_path / "whole")

    learn_task = stream.learn_task

    def killed_in_task_five(*args: object) -> stream.Row:
        if args[2] == 5:
            raise Killed
        return learn_task(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stream, "learn_task", killed_in_task_five)
        stream.run(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / SUMMARY).exists()
    torch.manual_seed(999)  # the global stream of a new process is another one
    stream.run(config, tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert len(files_of(tmp_path / "whole")) == (2 if config.measure_every else 1)


def test_same_seed_same_file_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        stream.run(replace(TINY, seed=seed), tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") != files_of(tmp_path / "c")


def test_columns_rows_and_summary(tmp_path: Path) -> None:
    summary = stream.run(TINY, tmp_path)
    header, *lines = (tmp_path / "tasks.csv").read_text().splitlines()
    assert header == "task,online_accuracy,final_accuracy,final_loss,parameter_norm,jacobian_norm,dead_fraction,offset"
    assert [line.split(",")[0] for line in lines] == list("012345")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["config"]["width"] == 8
    assert written["late_accuracy"] == summary["late_accuracy"] == float(lines[-1].split(",")[1])


def test_early_and_late_windows_leave_the_first_tasks_out() -> None:
    names = ("final_loss", "jacobian_norm", "parameter_norm", "dead_fraction", "offset")
    rows = [{"online_accuracy": float(i), **dict.fromkeys(names, 2.0 * i)} for i in range(200)]
    summary = stream.summarise(rows)
    assert summary["early_accuracy"] == sum(range(10, 30)) / 20
    assert summary["late_accuracy"] == sum(range(180, 200)) / 20
    assert summary["late_loss"] == summary["late_jacobian_norm"] == 2 * summary["late_accuracy"]
    assert summary["parameter_norm"] == 398.0


def test_a_row_says_what_the_network_does(tmp_path: Path) -> None:
    images = load_images("digits", None, 24, 0)
    learner = Learner(TINY, images)
    labels, batches = stream.task_data(TINY, 0)
    right = 0
    twin = Learner(TINY, images)
    for batch in batches:
        with torch.no_grad():
            right += int((twin.network(images[batch]).argmax(1) == labels[batch]).sum())
        twin.update(images[batch], labels[batch])
    row = stream.learn_task(TINY, learner, 0, [])
    with torch.no_grad():
        logits = learner.network(images)
        expected_loss = -logits.log_softmax(1)[torch.arange(24), labels].mean()
        norm = sum(float(p.square().sum()) for p in learner.network.parameters()) ** 0.5
    assert row["online_accuracy"] == right / 32
    assert row["final_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert row["final_loss"] == pytest.approx(float(expected_loss), rel=1e-5)
    assert row["parameter_norm"] == pytest.approx(norm, rel=1e-5)
    jacobians = vmap(jacrev(learner.network))(images.unsqueeze(1)).detach()  # [24, 1, 10, 1, 1, 8, 8]
    exact = jacobians.flatten(1).square().sum(1).mean().sqrt()
    assert row["jacobian_norm"] == pytest.approx(float(exact), rel=0.25)  # one direction for each of 24 images


def test_labels_change_with_the_task_and_images_do_not_decide_them() -> None:
    first, _ = stream.task_data(TINY, 0)
    second, batches = stream.task_data(TINY, 1)
    assert first.shape == (24,) and batches.shape == (4, 8)
    assert not torch.equal(first, second)
    assert not torch.equal(stream.task_data(replace(TINY, seed=1), 0)[0], first)


def test_a_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    stream.run(TINY, tmp_path)
    with pytest.raises(ValueError, match="holds a study with another config"):
        stream.run(replace(TINY, learning_rate=0.5), tmp_path)


def test_scale_and_offset_may_learn_more_slowly_and_the_file_says_how_far_the_offsets_went(tmp_path: Path) -> None:
    images = load_images("digits", None, 24, 0)
    config = replace(TINY, nap=False, affine_rate=0.25, learning_rate=1e-2)
    learner = Learner(config, images)
    before = {name: p.detach().clone() for name, p in learner.network.named_parameters()}
    labels, batches = stream.task_data(config, 0)
    learner.update(images[batches[0]], labels[batches[0]])
    for name, p in learner.network.named_parameters():  # Adam's first step is the rate wherever there is a gradient
        step = 0.25e-2 if "norm" in name else 1e-2
        assert float((p.detach() - before[name]).abs().max()) == pytest.approx(step, rel=1e-3)
    row = stream.task_row(learner, 0, labels, torch.tensor(0.0))
    pairs = [(m.weight, m.bias) for m in learner.network.modules() if isinstance(m, torch.nn.LayerNorm)]
    expected = sum(float((b / g).detach().sum()) for g, b in pairs) / 16  # 2 layers of 8 units
    assert row["offset"] == pytest.approx(expected, rel=1e-5) and expected != 0.0
    with pytest.raises(ValueError, match="affine_rate=0.5 needs scale and offset"):
        validate(replace(TINY, affine="omit", affine_rate=0.5))


def test_the_pull_on_scale_and_offset_is_the_configured_one() -> None:
    images = load_images("digits", None, 24, 0)
    config = replace(TINY, affine="regularize", learning_rate=1e-2)
    weak, strong = Learner(config, images), Learner(replace(config, regularize_coefficient=10.0), images)
    labels, batches = stream.task_data(config, 0)
    for learner in (weak, strong):
        learner.update(images[batches[0]], labels[batches[0]])
    # After one update of lr, offset <- offset - lr k offset: 0.999 of Adam's step for k = 0.1, 0.9 for k = 10.
    (_, a), (_, b) = gains_and_offsets(weak.network)[0], gains_and_offsets(strong.network)[0]
    torch.testing.assert_close(b / 0.9, a / 0.999)
    assert float(a.detach().abs().max()) == pytest.approx(0.999e-2, rel=1e-3)


def test_the_number_of_processes_is_no_part_of_a_study(tmp_path: Path) -> None:
    stream.run(replace(TINY, tasks=2, jobs=4), tmp_path)
    (tmp_path / SUMMARY).unlink()
    stream.run(replace(TINY, tasks=2, jobs=1), tmp_path)  # goes on from the other's checkpoint
    assert (tmp_path / SUMMARY).is_file()


def test_projected_weights_keep_their_norm_and_unprojected_grow(tmp_path: Path) -> None:
    config = replace(TINY, tasks=10, affine="omit", learning_rate=1e-2)
    fixed = stream.run(config, tmp_path / "nap")["parameter_norm"]
    grown = stream.run(replace(config, nap=False), tmp_path / "twin")["parameter_norm"]
    assert grown > 1.1 * fixed
