"""Chips that programs can be compiled for without having one."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from indextts_jax.errors import Error


@dataclass(frozen=True)
class Chip:
    """What its maker publishes of one chip, and by which names its compiler knows it."""

    name: str
    platform: str  # "tpu" or "cuda"
    memory: float  # bytes
    bandwidth: float  # bytes a second
    flops: float  # a second, of bfloat16 products
    clock: float = 0.0  # Hz, of the cycles that a TPU's compiler estimates
    accelerator: str = ""  # as cloud machines call it
    topologies: dict[int, str] = field(default_factory=dict, hash=False)  # by the number of chips


def _tpu(name: str, accelerator: str, memory: float, bandwidth: float, flops: float, clock: float, cube: bool) -> Chip:
    shapes = {1: "2x2x1", 4: "2x2x1", 8: "2x2x2"} if cube else {1: "1x1", 4: "2x2", 8: "2x4"}
    topologies = {chips: f"{name}:{shape}" for chips, shape in shapes.items()}
    return Chip(name, "tpu", memory, bandwidth, flops, clock, accelerator, topologies)


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "v4-8", 32e9, 1228e9, 275e12, 1.05e9, cube=True),
        _tpu("v5e", "v5litepod-1", 16e9, 819e9, 197e12, 1.5e9, cube=False),
        _tpu("v5p", "v5p-8", 95e9, 2765e9, 459e12, 1.75e9, cube=True),
        _tpu("v6e", "v6e-1", 32e9, 1640e9, 918e12, 1.75e9, cube=False),
        Chip("h100", "cuda", 80e9, 3352e9, 989e12),
        Chip("h200", "cuda", 141e9, 4800e9, 989e12),
    )
}


def devices(chip: Chip, count: int = 1) -> Any:
    """So many devices of that kind, to compile for: an array of them. Raises Error where its compiler is missing."""
    from jax.experimental import topologies

    sizes = chip.topologies or {1: ""}
    if count not in sizes:
        raise Error(f"--chips {count}: for {chip.name} it can be {', '.join(map(str, sizes))}")
    try:
        if chip.platform == "tpu":
            # Quiet, without a cloud's metadata server, and beside other processes: the compiler locks a file.
            os.environ.setdefault("TPU_ACCELERATOR_TYPE", chip.accelerator)
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
            os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
            # Where a host has fewer chips than it could.
            hosts = {"chips_per_host_bounds": (1, 1, 1)} if chip.topologies[count].endswith(":1x1") else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=chip.topologies[count], **hosts).devices
        else:
            found = topologies.get_topology_desc(
                platform="cuda", topology_name="", target_config=_gpu(chip), topology="1x1x1"
            ).devices
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Error(
            f"--target {chip.name}: its compiler cannot be used ({reason}); it comes with "
            f"pip install 'indextts-jax[{chip.platform}]'"
        ) from None
    return np.array(found[:count])


def _gpu(chip: Chip) -> str:
    """The description that XLA's compiler for CUDA takes in the place of a GPU: those of compute capability 9.0."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {chip.memory:.0f}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "NVIDIA {chip.name.upper()}"
"""
