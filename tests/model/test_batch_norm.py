"""Batch normalisation over two real processes equals torch's own over the joint batch in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from memssl_core.model.batch_norm import BatchNorm, sync_batch_norms
from memssl_core.model.head import Head
from memssl_core.model.pair import Network

ROOT = Path(__file__).parents[2]
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)


def plain_head(in_dim: int) -> nn.Module:
    """A head whose batch normalisations are torch's own, under the names of ours."""
    head = Head(in_dim, 6, 4, batch_norm=True)
    for name, layer in head.mlp.named_children():
        if isinstance(layer, BatchNorm):
            setattr(head.mlp, name, nn.BatchNorm1d(6))
    return head


def backbone_and_head() -> nn.Module:
    backbone = timm.create_model("test_efficientnet", num_classes=0)
    return Network(backbone, plain_head(backbone.num_features))  # type: ignore[arg-type]


# What is normalised, the shape of each group of pictures or rows in the joint batch, the share of the first process.
CASES = {
    "rows, even": (lambda: nn.BatchNorm1d(5), [(8, 5)], [4]),
    "rows, one against six": (lambda: nn.BatchNorm1d(5), [(7, 5)], [1]),
    "rows, all in one process": (lambda: nn.BatchNorm1d(5), [(6, 5)], [6]),
    "rows far from 0": (lambda: nn.Sequential(nn.BatchNorm1d(5, affine=False, momentum=None)), [(9, 5)], [3]),
    "maps": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4)), [(5, 3, 6, 7)], [2]),
    "head": (lambda: plain_head(3), [(7, 3)], [5]),
    "two sizes of views": (backbone_and_head, [(6, 3, 32, 32), (9, 3, 16, 16)], [4, 2]),
}


def made(case: str) -> tuple[nn.Module, list[torch.Tensor], list[int]]:
    """The network in float64 and train mode, the joint batch, the share of the first process."""
    torch.manual_seed(0)
    make, shapes, first = CASES[case]
    groups = [torch.randn(shape, dtype=torch.float64) + (1000 if "far" in case else 0) for shape in shapes]
    network = make().double().train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network, groups, first


def run(network: nn.Module, groups: list[torch.Tensor], weights: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two steps' worth of statistics; the last output and gradients of its weighted sum."""
    network(*groups)
    leaves = [group.clone().requires_grad_() for group in groups]
    output = network(*leaves)
    (output * torch.cat(weights)).sum().backward()
    facts = {f"statistic {name}": tensor for name, tensor in network.named_buffers()}
    facts |= {f"gradient {name}": parameter.grad for name, parameter in network.named_parameters()}  # type: ignore[misc]
    return facts | {f"input {i}": leaf.grad for i, leaf in enumerate(leaves)} | {"output": output.detach()}  # type: ignore[misc]


def weights_of(case: str, groups: list[torch.Tensor], output: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    drawn = torch.randn(output.shape, dtype=torch.float64)
    return list(drawn.split([len(group) for group in groups]))


def shares(groups: list[torch.Tensor], first: list[int], rank: int) -> list[torch.Tensor]:
    return [group[:n] if rank == 0 else group[n:] for group, n in zip(groups, first, strict=True)]


def of_one_process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for case in CASES:
        network, groups, first = made(case)
        weights = weights_of(case, groups, made(case)[0].eval()(*groups))
        network = sync_batch_norms(network)
        found[case] = run(network, shares(groups, first, rank), shares(weights, first, rank))
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in (0, 1)]
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_joint_batch(case, two_processes):
    network, groups, first = made(case)
    assert any(type(module) in KINDS for module in network.modules()), "the reference is torch's and timm's own"
    weights = weights_of(case, groups, made(case)[0].eval()(*groups))
    joint = run(network, groups, weights)
    outputs = joint["output"].split([len(group) for group in groups])
    for rank, found in enumerate(facts[case] for facts in two_processes):
        own = {
            f"input {i}": part
            for i, part in enumerate(shares([joint[f"input {i}"] for i in range(len(groups))], first, rank))
        }
        own["output"] = torch.cat(shares(list(outputs), first, rank))
        own |= {name: tensor for name, tensor in joint.items() if name.startswith("statistic")}
        for name, wanted in own.items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    for name in (name for name in joint if name.startswith("gradient")):
        total = sum(facts[case][name] for facts in two_processes)
        torch.testing.assert_close(total, joint[name], rtol=1e-10, atol=1e-10)


def test_alone_it_is_torchs_own():
    torch.manual_seed(0)
    ours, torchs, rows = BatchNorm(5), nn.BatchNorm1d(5), torch.randn(2, 6, 5)
    for x in rows:
        assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.eval()(rows[0]), torchs.eval()(rows[0]))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert all(torch.equal(value, torchs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_converted_networks_keep_names_weights_and_results():
    network = backbone_and_head().eval()
    pixels, state, parameters = torch.randn(2, 3, 32, 32), network.state_dict(), dict(network.named_parameters())
    before = network(pixels)
    synced = sync_batch_norms(network)
    assert not any(type(module) in KINDS for module in synced.modules())
    assert synced.state_dict().keys() == state.keys()
    assert all(parameters[name] is parameter for name, parameter in synced.named_parameters())
    torch.testing.assert_close(synced(pixels), before)
    assert not any(module.training for module in synced.modules())


if __name__ == "__main__":
    of_one_process(int(sys.argv[2]), Path(sys.argv[1]))
