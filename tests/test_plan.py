import dataclasses
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st

from flows.plan_cli import plan as command
from tests.fake_workspace import make_workspace
from winnow.errors import ConfigError
from winnow.plan.ledger import Ledger
from winnow.plan.observed import observed_numbers
from winnow.plan.plan import Plan, make_plan
from winnow.plan.settings import NodeKind, PlanSettings, Rates, Training, Workload, read_settings, with_numbers
from winnow.plan.show import hours, rounded, scaled
from winnow.receipts import read_receipts
from winnow.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
GLIDE = ROOT / "docs" / "glide-plan.yaml"
CPU = NodeKind(count=10, cpus=8, gbit_per_second=8, price_per_hour=0.5)
GPU = NodeKind(count=2, cpus=16, gpus=4, gbit_per_second=80, price_per_hour=20, peak_tflops=1000)
ROUND = PlanSettings(
    nodes={"cpu": CPU, "gpu": GPU},
    workload=Workload(listed=8e6, downloaded_share=0.5, kept_share=0.25, image_bytes=99_000, sample_overhead_bytes=1000, crops_per_image=3,
                      feature_dim=500, filters=2, support_vectors=1000),
    rates=Rates(download_cpu_seconds=0.0036, url_seconds=1.0, url_threads=100, decode_cpu_seconds=0.002, crops_per_gpu_second=1000,
                crops_per_cpu_second=4, gemm_flops_per_cpu_second=1e11, hash_pairs_per_cpu_second=5e8, score_cpu_seconds=1e-8,
                shard_cpu_seconds=0.0036, overhead=1.0),
    train=(Training(name="base", iterations=1e6, batch_size=1000, gflops_per_image=720, mfu=0.5),),
    storage_price_per_tb_month=20,
)  # fmt: skip
"""Numbers that can be worked out by heart."""


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    ledger = make_plan(ROUND).ledger
    by_hand = {
        "downloaded": 4e6,
        "kept": 1e6,
        "raw_bytes": 4e11,
        "download_cpu_hours": 8.0,  # 8e6 urls x 3.6 ms
        # CPUs 8 h / 80 = 0.1; servers 8e6 s / (100 x 80) = 1000 s; network 8e11 B at 10 x 1e9 B/s = 80 s
        "download_hours": 1000 / 3600,
        "download_cost": 1000 / 3600 * 5,
        "crops": 12e6,
        "embed_gpu_hours": 12_000 / 3600,
        "embed_cpu_hours": 8000 / 3600,
        "embed_hours": 12_000 / 3600 / 8,  # CPUs 250 s, network 20 s: GPUs 1500 s
        "embed_cost": 1500 / 3600 * 40,
        "cells": 256,  # 4 ** 4 x 4096 images = 1 M <= 4 M < 4 ** 5 x 4096
        "duplicates_flops": 1000 * 4e6 * 256,  # each image with each centroid
        "hash_pairs": 2.5e11,  # each image with those of four cells of 15,625
        "duplicates_cpu_hours": (10.24 + 500) / 3600,
        "score_cpu_hours": 4e6 * 2 * 1000 * 1e-8 / 3600,
        "shard_bytes": 1e11,
        "shard_hours": 50 / 3600,  # CPUs 3600 s / 80 = 45 s; network 5e11 B at 1e10 B/s = 50 s
        "train_base_images": 1e9,
        "train_base_gpu_hours": 1e9 * 720e9 / 5e14 / 3600,  # 400 hours
        "train_base_hours": 50,
        "train_base_epochs": 1000,
        "train_base_cost": 2000,
    }
    assert {name: ledger[name] for name in by_hand} == pytest.approx(by_hand)


def test_what_limits_a_stage_is_named() -> None:
    limits = {row.stage: row.limit for row in make_plan(ROUND).rows}
    assert limits == {"download": "waiting for servers", "embed": "GPUs", "duplicates": "CPUs", "score": "CPUs", "shard": "network",
                      "train_base": "GPUs"}  # fmt: skip


def test_totals_are_sums_of_the_stages() -> None:
    made = make_plan(ROUND)
    for total, key in (("total_hours", "hours"), ("total_cost", "cost"), ("total_gpu_hours", "gpu_hours"), ("total_bytes", "written")):
        names = [getattr(row, key) for row in made.rows]
        assert made.ledger[total] == pytest.approx(sum(made.ledger[name] for name in names if name))
    assert made.ledger["total_storage_cost_per_month"] == pytest.approx(made.ledger["total_bytes"] / 1e12 * 20)


def test_a_cluster_without_gpus_embeds_on_cpus() -> None:
    made = make_plan(dataclasses.replace(ROUND, nodes={"cpu": CPU}, train=()))
    # 12e6 crops at 4 a second and 4e6 images at 2 ms, on 80 CPUs
    assert made.ledger["embed_hours"] == pytest.approx((3e6 + 8000) / 80 / 3600)
    assert made.ledger["total_gpu_hours"] == 0


def test_few_images_are_compared_each_with_each() -> None:
    made = make_plan(dataclasses.replace(ROUND, workload=dataclasses.replace(ROUND.workload, listed=2e6)))
    assert (made.ledger["hash_pairs"], made.ledger["duplicates_flops"]) == (0.5e12, 0)  # half of (1e6)^2 pairs
    assert "cells" not in made.ledger.lines


@property_settings(deadline=None, max_examples=25)
@given(st.floats(1e6, 1e11), st.integers(2, 50))
def test_ten_times_the_urls_on_ten_times_the_machines_take_as_long_but_for_the_search(listed: float, factor: int) -> None:
    def grown(times: int) -> Plan:
        nodes = {name: dataclasses.replace(kind, count=kind.count * times) for name, kind in ROUND.nodes.items()}
        workload = dataclasses.replace(ROUND.workload, listed=listed * times)
        return make_plan(dataclasses.replace(ROUND, nodes=nodes, workload=workload, train=()))

    one, many = grown(1).ledger, grown(factor).ledger
    for stage in ("download", "embed", "score", "shard"):
        assert many[f"{stage}_hours"] == pytest.approx(one[f"{stage}_hours"])
        assert many[f"{stage}_cost"] == pytest.approx(factor * one[f"{stage}_cost"])


def test_every_number_can_be_recomputed_from_what_is_shown() -> None:
    shown = make_plan(read_settings(str(GLIDE))).as_json()
    functions = {"max": max, "min": min, "ceil": math.ceil, "floor": math.floor, "log": math.log}
    known = {name: entry["value"] for name, entry in shown["given"].items()}
    for name, line in shown["computed"].items():
        assert line["inputs"] == {used: known[used] for used in line["inputs"]}
        assert eval(line["formula"], {"__builtins__": {}}, {**functions, **line["inputs"]}) == pytest.approx(line["value"])
        known[name] = line["value"]
    assert all(entry["origin"] for entry in shown["given"].values())


def test_glides_own_sizes_come_out() -> None:
    ledger = make_plan(read_settings(str(GLIDE))).ledger
    assert ledger["kept"] == pytest.approx(67e6, rel=0.01)
    assert ledger["train_base_3_5b_images"] == 2.5e6 * 2048
    assert ledger["train_base_3_5b_epochs"] == pytest.approx(76.5, rel=0.01)
    assert ledger["train_noised_clip_vit_l_epochs"] == pytest.approx(390_000 * 32_768 / 137e6)
    # 2.6e19 FLOP for 250 M images of three crops (35.1 GFLOP each): here 0.85 x 2.8 / 3 of them
    assert ledger["crops"] * 35.1e9 == pytest.approx(2.6e19 * 0.85 * 2.8 / 3, rel=0.02)


def test_the_table_in_the_docs_is_what_the_plan_says() -> None:
    made = make_plan(read_settings(str(GLIDE)))
    text = (ROOT / "docs" / "plan.md").read_text()
    for row in made.rows:
        cpus, gpus = (rounded(made.ledger[name]) if name else "" for name in (row.cpu_hours, row.gpu_hours))
        written = scaled(made.ledger[row.written]) if row.written else ""
        time, cost = hours(made.ledger[row.hours]), rounded(made.ledger[row.cost])
        assert f"| {row.stage} | {time} | {cpus} | {gpus} | {written} | {cost} | {row.limit} |" in text


def test_a_formula_that_divides_by_zero_names_the_number() -> None:
    with pytest.raises(ConfigError, match="crops_per_gpu_second must be above 0"):
        make_plan(dataclasses.replace(ROUND, rates=dataclasses.replace(ROUND.rates, crops_per_gpu_second=0)))


def test_formulas_hold_arithmetic_alone() -> None:
    ledger = Ledger()
    ledger.give("a", 3, "", "here")
    assert ledger.compute("b", "", "max(a * 2, 4) ** 2 - 1") == 35
    with pytest.raises(AssertionError):
        ledger.compute("c", "", "a.real + 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workload: {listed: 5}", "nodes"),
        ("nodes: {a: {count: 1, cpus: 4, gbit_per_second: 1, price_per_hour: 1, gpu: 2}}", "nodes.a.gpu: "),
        ("nodes: {a: {count: 0, cpus: 4, gbit_per_second: 1, price_per_hour: 1}}", "count must be above 0"),
        ("nodes: {a-b: {count: 1, cpus: 4, gbit_per_second: 1, price_per_hour: 1}}", "letters, digits and _"),
        (
            "nodes: {a: {count: 1, cpus: 4, gbit_per_second: 1, price_per_hour: 1}}\nstages: {dedup: a}",
            "no stage 'dedup'. Choose from: download",
        ),
        ("nodes: {a: {count: 1, cpus: 4, gbit_per_second: 1, price_per_hour: 1}}\nworkload: {kept_share: 3}", "a share, at most 1"),
        (
            "nodes: {a: {count: 1, cpus: 4, gbit_per_second: 1, price_per_hour: 1}}\n"
            "train: [{name: b, iterations: 1, batch_size: 1, gflops_per_image: 1}]",
            "need gpus and peak_tflops",
        ),
        ("- 5", "must hold nodes"),
        ("a: {", "is not YAML"),
    ],
)
def test_a_wrong_plan_is_refused_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read_settings(str(path))


def test_numbers_of_the_file_come_before_measured_ones_and_these_before_defaults() -> None:
    settings = with_numbers(read_settings(str(GLIDE)), {"listed": 5, "image_bytes": 77_000}, "measured")
    settings = with_numbers(settings, {"image_bytes": 1}, "receipts")
    given_ones = make_plan(settings).ledger.given
    assert (given_ones["listed"].value, given_ones["listed"].origin) == (250e6, str(GLIDE))
    assert (given_ones["image_bytes"].value, given_ones["image_bytes"].origin) == (77_000, "measured")
    assert given_ones["nprobe"].origin.startswith("default: ")


def test_rates_of_a_run_are_its_receipts_seconds_by_what_they_did(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, parts=1, rows=40, trained=False)
    numbers = observed_numbers(storage, ROUND)
    download, score, shard = (read_receipts(storage, stage) for stage in ("download", "score", "shard"))
    downloaded, failed = (sum(receipt.counts[key] for receipt in download) for key in ("downloaded", "failed"))
    assert numbers["downloaded_share"] == pytest.approx(downloaded / (downloaded + failed))
    assert numbers["url_seconds"] / 100 == pytest.approx(sum(receipt.seconds for receipt in download) / (downloaded + failed))
    kept, dropped = (sum(receipt.counts[key] for receipt in score) for key in ("kept", "dropped"))
    assert numbers["kept_share"] == pytest.approx(kept / (kept + dropped))
    work = (kept + dropped) * numbers["filters"] * numbers["support_vectors"]
    assert numbers["score_cpu_seconds"] * work == pytest.approx(sum(receipt.seconds for receipt in score))
    assert numbers["shard_cpu_seconds"] == pytest.approx(
        sum(receipt.seconds for receipt in shard) / sum(receipt.counts["samples"] for receipt in shard)
    )
    assert set(numbers) <= {entry.name for group in (Workload, Rates) for entry in dataclasses.fields(group)}


def test_a_workspace_in_which_nothing_ran_has_no_rates(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(ConfigError, match="no finished partition"):
        observed_numbers(storage, ROUND)


def test_the_command_prints_a_table_with_formulas_or_json() -> None:
    table = CliRunner().invoke(command, [str(GLIDE)])
    assert table.exit_code == 0, table.output
    assert "download_cpu_hours = listed * download_cpu_seconds / 3600 = 139 CPU hours" in table.output
    assert "train_base_3_5b" in table.output and "limited by" in table.output
    shown = json.loads(CliRunner().invoke(command, [str(GLIDE), "--json"]).output)
    assert shown["totals"]["cost"] == pytest.approx(sum(stage["cost"] for stage in shown["stages"]))


def test_numbers_are_shown_as_people_say_them() -> None:
    assert [hours(value) for value in (1 / 720, 0.5, 27.03, 240)] == ["5 s", "30 min", "27 h", "10 days"]
    assert [scaled(value) for value in (0, 999, 26.2e12, 1.5e3)] == ["0 B", "999 B", "26.2 TB", "1.5 kB"]
    assert [rounded(value) for value in (0, 0.03456, 15_999, 1.2e-8, 3.1e15)] == ["0", "0.0346", "16,000", "1.20e-08", "3.1e+15"]
