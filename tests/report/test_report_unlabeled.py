"""What the report says of unlabeled images, of affinities, of energy; and the plane of its maps."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from helpers.pages import Page, unfinished

from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import open_tables
from stml_semi.report.pictures import Pictures
from stml_semi.report.retrieval.projection import project
from stml_semi.report.unlabeled.affinities import affinity_charts
from stml_semi.report.unlabeled.pool_view import view_pool
from stml_semi.report.write import report_runs
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.machine import gpu_joules
from stml_semi.sharing.export_run import export_run
from stml_semi.training.health import AFFINITY_BINS, affinity_histogram


def test_the_histogram_counts_every_pair_but_an_image_and_itself():
    affinity = torch.tensor([[1.0, 0.02, 0.51], [0.02, 1.0, 0.99], [0.51, 0.99, 1.0]])
    counts = affinity_histogram(affinity)["affinity_histogram"]
    assert len(counts) == AFFINITY_BINS == 20
    assert {place: count for place, count in enumerate(counts) if count} == {0: 2, 10: 2, 19: 2}
    assert affinity_histogram(None) == {}


def test_affinities_over_time_are_drawn_run_by_run():
    def line(step: int, low: int, high: int) -> dict:
        return {"step": step, "affinity_histogram": [low, *[0] * 18, high]}

    run = [{"step": 1, "loss": 2.0}, *(line(step, 100 - step, step) for step in range(10, 60, 10))]
    (chart,) = affinity_charts([run])
    assert chart.text.endswith("at least 0.5 are 10.0% at step 10, 50.0% at step 50.")
    assert "data:image/png;base64," in chart.svg
    assert "http" not in chart.svg
    assert " id=" not in "".join(chart.svg.split("<image")[1:]).split(">")[0]
    assert [c.title for c in affinity_charts([run, [], run])] == [
        "Distribution of affinities, run A",
        "Distribution of affinities, run C",
    ]
    # A long run: parts are summed, so that no pair is left out.
    (chart,) = affinity_charts([[line(step, 1, step % 2) for step in range(1, 1001)]])
    assert "are 33.3% at step 10, 33.3% at step 1000" in chart.text
    assert affinity_charts([[{"step": 1, "loss": 2.0}]]) == []


def test_the_plane_is_that_of_most_variance_unless_umap_is_there(monkeypatch):
    rng = np.random.default_rng(0)
    cloud = torch.from_numpy(rng.normal(size=(200, 8)) * [5, 3, 1, 1, 1, 1, 1, 1])
    points = np.array([3, 5, 8])
    monkeypatch.setitem(sys.modules, "umap", None)
    found = project(cloud, points)
    assert found.axes[0] == "first principal component"
    unit = torch.nn.functional.normalize(cloud, dim=1).numpy()
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False) ** 2
    assert found.words == f"{100 * values[:2].sum() / values.sum():.0f}% of the variance"
    assert np.ptp(found.plane[:, 0]) > 0

    class UMAP:
        def __init__(self, **options: object) -> None:
            assert options["random_state"] == 0

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    found = project(cloud, points)
    assert found.words.startswith("UMAP")
    np.testing.assert_allclose(found.plane, unit[points, :2], atol=1e-6)
    assert project(cloud[:10], points).words.endswith("variance")  # Too few for it.


def test_energy_is_written_down_where_the_driver_counts_it(monkeypatch, tmp_path):
    class NVMLError(Exception):
        pass

    counter = iter([5_000_000, 8_600_000])
    nvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: {"GPU-1234": "handle"}[name],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counter),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_joules() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: types.SimpleNamespace(uuid="1234"))
    run = unfinished(tmp_path / "run", str(tmp_path / "gone"))
    about = {"command": "c", "started": "now", "first_step": 0, "processes": 1, "versions": {}, "hardware": {}}
    with run.session(about, gpu_joules):
        pass
    assert run.sessions()[0]["gpu_joules"] == 3600
    assert "Energy of the GPUs: 0.001 kWh." in Page(report_runs([str(run.path)], None)).text

    def too_old(handle: str) -> int:
        raise NVMLError

    nvml.nvmlDeviceGetTotalEnergyConsumption = too_old
    with run.session(about, gpu_joules):
        pass
    assert run.sessions()[1]["gpu_joules"] is None
    assert "Energy" not in Page(report_runs([str(run.path)], None)).text  # Of one of two sittings: not the whole.


@pytest.mark.slow
def test_what_the_pool_was_used_for(finished_run):
    run = RunFolder(finished_run, writes=False)
    config = run.config()
    tables = open_tables(config)
    assert isinstance(tables.unlabeled, ImageTable)
    view = view_pool(config, run.checkpoints, tables.unlabeled, tables.labeled, Pictures(), device="cpu", num_workers=0)
    assert view is not None
    assert (view.step, view.num_live, view.num_images) == (6, 29, 30)
    assert (view.refreshed, view.often[0].drawn >= view.often[-1].drawn) == (config.warmup_steps, True)
    logged = [line for line in run.log.lines() if "affinity_histogram" in line]
    assert [line["step"] for line in logged] == list(range(config.warmup_steps + 1, 7))
    views = config.unlabeled_batch_size * config.num_views
    assert {sum(line["affinity_histogram"]) for line in logged} == {views * (views - 1)}

    relations = view.relations
    assert relations is not None
    percent = np.array(relations.percent)
    assert percent.shape == (20, 20)
    assert (percent == percent.T).all()
    assert (np.diag(percent) == 100).all()
    assert relations.apart is not None
    assert 0 <= relations.apart <= 1
    own = [[name == other for other in relations.names] for name in relations.names]
    assert (percent[np.array(own)] == 100).all()  # An image drawn twice is itself.

    sample = view.sample
    cosines = [pair.cosine for pair in (*sample.most_relevant, *sample.least_relevant[::-1])]
    assert cosines == sorted(cosines, reverse=True)
    assert len(cosines) == 16
    assert all("/labeled/" in pair.other_where for pair in sample.most_relevant)
    copies = {pair.where.rsplit("/", 1)[1] for pair in sample.duplicates if pair.cosine > 0.99999}
    copies |= {pair.other_where.rsplit("/", 1)[1] for pair in sample.duplicates if pair.cosine > 0.99999}
    assert copies == {"6.png", "7.png"}
    assert sample.num_duplicated >= 2


@pytest.mark.slow
def test_a_torn_checkpoint_costs_its_part_of_the_page_only(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-6" / "modules.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    (tmp_path / "run" / "run.json").write_text(json.dumps({}))
    page = Page(report_runs([str(tmp_path / "run")], None))
    page.check()
    assert "step-6 cannot be read (modules.safetensors is not what was written)" in page.text
    with pytest.raises(BadInput, match="step-6 cannot be read"):
        export_run(str(tmp_path / "run"), str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()
    assert "Nearest neighbors" in page.text
