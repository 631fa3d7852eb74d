"""Energy by the hardware's counters, on folders in the format of /sys/class/powercap."""

from pathlib import Path

import pytest
import torch
from tests.train.runs import run

from dftune.files import read_jsonl
from dftune.report.load import read_run
from dftune.train import energy
from dftune.train.energy import EnergyMeter, total_energy

CPU = torch.device("cpu")
RANGE = 262_143_328_850  # microjoules, as an Intel package reports it


def zone(root: Path, name: str, what: str, microjoules: int) -> Path:
    """A zone as the kernel shows it; returns its counter."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{what}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_add_up_without_their_parts_and_without_the_board_that_holds_them(tmp_path):
    counters = [
        zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 500),
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:2", "psys", 0),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    (tmp_path / "dtpm").mkdir()
    meter = EnergyMeter(CPU, reads_cpu=True, powercap=tmp_path)
    assert meter.read() == {"cpu_joules": 0.0}
    for counter, now in zip(counters, (3_500_000, 1_000_500, 9_000_000, 9_000_000, 9_000_000), strict=True):
        counter.write_text(f"{now}\n")
    assert meter.read() == {"cpu_joules": 2.5 + 1.0}


def test_a_counter_that_starts_again_from_zero_goes_on_counting(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = EnergyMeter(CPU, reads_cpu=True, powercap=tmp_path)
    counter.write_text("2000000")
    assert meter.read() == {"cpu_joules": 3.0}
    counter.write_text("5000000")
    assert meter.read() == {"cpu_joules": 6.0}
    counter.write_text("1000000")
    assert meter.read() == {"cpu_joules": pytest.approx(6.0 + RANGE / 1e6 - 4.0)}


@pytest.mark.parametrize("damage", ["no folder", "no zone", "one unreadable", "no number"])
def test_what_cannot_be_read_is_unknown_and_not_zero(tmp_path, damage):
    if damage != "no folder":
        (tmp_path / "rapl").mkdir()
    if damage in ("one unreadable", "no number"):
        zone(tmp_path / "rapl", "intel-rapl:0", "package-0", 0)
        counter = zone(tmp_path / "rapl", "intel-rapl:1", "package-1", 0)
        counter.unlink()
        if damage == "no number":
            counter.write_text("\n")
    reading = EnergyMeter(CPU, reads_cpu=True, powercap=tmp_path / "rapl").read()
    assert reading == {"cpu_joules": None}
    assert total_energy([reading, {"cpu_joules": 5.0}]) == {}


def test_a_counter_that_is_lost_on_the_way_leaves_the_sum_unknown(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(CPU, reads_cpu=True, powercap=tmp_path)
    counter.unlink()
    assert meter.read() == {"cpu_joules": None}
    counter.write_text("7000000")
    assert meter.read() == {"cpu_joules": None}


def test_ranks_are_added_up_and_each_machine_counts_its_processors_once(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meters = [EnergyMeter(CPU, reads_cpu=local_rank == 0, powercap=tmp_path) for local_rank in (0, 1, 0, 1)]
    counter.write_text("2000000")
    assert total_energy(meter.read() for meter in meters) == {"cpu_joules": 4.0}
    assert total_energy([{"gpu_joules": 1.5, "cpu_joules": None}, {"gpu_joules": 2.0}]) == {"gpu_joules": 3.5}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose counter may be read")
def test_a_gpu_without_a_counter_is_unknown():
    assert EnergyMeter(torch.device("cuda", 0), reads_cpu=False).read() == {"gpu_joules": None}


@pytest.mark.gpu
def test_the_counter_of_a_gpu_grows_with_work():
    pytest.importorskip("pynvml")
    meter = EnergyMeter(torch.device("cuda", 0), reads_cpu=False)
    a = torch.randn(8192, 8192, device="cuda")
    for _ in range(200):
        a = torch.nn.functional.normalize(a @ a)
    torch.cuda.synchronize()
    assert meter.read()["gpu_joules"] > 1


def test_a_run_counts_each_session_from_zero_and_the_report_adds_them_up(make_recipe, tmp_path, monkeypatch):
    counter = zone(tmp_path / "rapl", "intel-rapl:0", "package-0", RANGE - 7_000_000)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "rapl")

    def use(row):
        """Ten joules a logged step; the first session dies at the fifth."""
        if row["kind"] == "train":
            counter.write_text(str((int(counter.read_text()) + 10_000_000) % RANGE))
            if row["step"] == 5 and not resumed:
                raise RuntimeError("killed")

    recipe, _ = make_recipe()
    resumed = False
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, watch=use)
    resumed = True
    folder = run(recipe, watch=use, resume=True).path
    rows = read_jsonl(folder / "events.jsonl")
    counts = [(row["step"], row["cpu_joules"]) for row in rows if row["kind"] == "train"]
    first = [(step, 10.0 * (step - 1)) for step in range(1, 6)]
    assert counts == first + [(step, 10.0 * (step - 4)) for step in range(4, 9)]
    assert rows[-1]["kind"] == "end"
    assert rows[-1]["cpu_joules"] == 50.0
    assert dict(read_run(folder).energy) == {"cpu_joules": 40.0 + 50.0}
