"""The files of recipes/accelerate are what accelerate accepts and what docs/clusters.md says of them."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


def load(path: Path) -> ClusterConfig:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    return config


def test_the_page_and_the_folder_name_the_same_files():
    mentioned = set(re.findall(r"recipes/accelerate/(\w+\.yaml)", PAGE))
    assert mentioned == {path.name for path in FILES} == {"cpu.yaml", "one_gpu.yaml", "one_node.yaml", "two_nodes.yaml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_nothing_is_sharded_or_compiled(path):
    config = load(path)
    assert config.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU)
    assert not config.fsdp_config
    assert not config.deepspeed_config
    assert not config.parallelism_config
    assert not config.dynamo_config
    assert config.num_processes % config.num_machines == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_header_is_a_command_that_accelerate_parses(path):
    comment = "".join(
        line.removeprefix("#   ").removesuffix("\\\n")
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.startswith("#   ")
    )
    start = f"accelerate launch --config_file recipes/accelerate/{path.name} "
    assert comment.startswith(start)
    words = ["--config_file", str(path), *comment.removeprefix(start).split()]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert defaults is not None
    assert args.training_script == "cli.py"
    assert args.num_processes == load(path).num_processes
    assert args.multi_gpu == (load(path).distributed_type == DistributedType.MULTI_GPU)


def test_the_cpu_file_keeps_away_from_gpus():
    config = load(ROOT / "recipes" / "accelerate" / "cpu.yaml")
    assert config.use_cpu
    assert config.num_processes == 1
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("name", "machines", "processes"), [("one_gpu", 1, 1), ("one_node", 1, 4), ("two_nodes", 2, 8)]
)
def test_gpu_files_are_bf16_with_a_process_for_every_gpu(name, machines, processes):
    config = load(ROOT / "recipes" / "accelerate" / f"{name}.yaml")
    assert not config.use_cpu
    assert config.mixed_precision == "bf16"
    assert (config.num_machines, config.num_processes) == (machines, processes)


def test_two_nodes_leave_rank_and_address_to_the_command_line():
    config = load(ROOT / "recipes" / "accelerate" / "two_nodes.yaml")
    assert config.main_process_ip is None
    assert config.main_process_port == 29500
    assert config.rdzv_backend == "static"
