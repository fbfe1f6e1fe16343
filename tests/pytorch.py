#!/usr/bin/env python3
"""Times a training step of comba-vision against the same network in PyTorch, on the CPU.

    tests/pytorch.py PROGRAM [--batch 32] [--steps 14] [--threads 1] [--compile] [PRESET ...]

The presets transformer_vision and comba_vision, 32 px colour pictures: forward, loss, backward, gradient norm, AdamW. Prints
images a second of wall time and of processor time (all threads together): the second is what holds on a machine that has other
work. Both sides run with few and with many steps, each the best of three, and the difference counts: starting costs neither
anything.

comba_vision is written twice in PyTorch. As flash-linear-attention and fla-zoo have it, the layer sees tokens that are in both
orders already. In comba_vision_once it projects each token once and orders afterwards, as comba-vision does by itself.
Without PyTorch it says so and leaves with 77, which test drivers read as 'skipped'."""

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
import time

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    print("pytorch.py: skipped, PyTorch is not installed")
    sys.exit(77)

SIDE, PATCH, WIDTH, LAYERS, HEADS, HIDDEN, CLASSES = 32, 4, 256, 6, 4, 512, 10
TOKENS, HEAD = (SIDE // PATCH) ** 2, WIDTH // HEADS


class Attention(nn.Module):
    """Softmax attention over all tokens, with rotary positions."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        angle = torch.outer(torch.arange(TOKENS), 10000 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("cos", angle.cos().repeat(1, 2))
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], -1))

    def rotate(self, x):
        return x * self.cos + x.roll(HEAD // 2, -1) * self.sin

    def forward(self, x):
        q, k, v = self.qkv(x).view(-1, TOKENS, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind()
        o = functional.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.out(o.transpose(1, 2).flatten(2))


def both_orders(x):
    return torch.cat([x, x.flip(1)])


def merge_orders(x):
    forward, backward = x.chunk(2)
    return forward + backward.flip(1)


class Comba(nn.Module):
    """Comba (arXiv 2506.02475, Eq. 5) in both directions; the tokens are one chunk, solved as a triangular system."""

    def __init__(self, once=False, taps=4):
        super().__init__()
        self.once = once  # the products before both orders and after their sum
        self.projection = nn.Linear(WIDTH, 4 * WIDTH + 2 * HEADS, bias=False)  # q, k, v, gate, a, b
        self.convolution = nn.Conv1d(3 * WIDTH, 3 * WIDTH, taps, groups=3 * WIDTH, padding=taps - 1, bias=False)
        self.a_log = nn.Parameter(torch.empty(HEADS).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(torch.full((HEADS,), -4.0))
        self.decay = nn.Parameter(torch.ones(HEADS))
        self.d = nn.Parameter(torch.full((HEADS,), 0.02))
        self.norm = nn.Parameter(torch.ones(HEAD))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.register_buffer("causal", torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())

    def forward(self, x):
        x = both_orders(self.projection(x)) if self.once else self.projection(both_orders(x))
        qkv, gate, a, b = x.split([3 * WIDTH, WIDTH, HEADS, HEADS], -1)
        qkv = functional.silu(self.convolution(qkv.transpose(1, 2))[..., :TOKENS])
        q, k, v = qkv.view(-1, 3, HEADS, HEAD, TOKENS).transpose(3, 4).unbind(1)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        p = self.decay.sigmoid()[:, None, None] * k
        q = q - self.d[:, None, None] * p
        beta = b.sigmoid().transpose(1, 2)
        gates = (-self.a_log.exp() * functional.softplus(a + self.dt_bias)).transpose(1, 2)
        total = gates.cumsum(-1)
        across = total[..., :, None] - total[..., None, :]
        score = torch.exp(across.masked_fill(~self.causal, -math.inf)) * (q @ k.mT)
        before = (across - gates[..., :, None]).masked_fill(~self.causal, -math.inf)
        feedback = (torch.exp(before) * beta[..., None, :] * (p @ k.mT)).tril(-1)
        errors = torch.linalg.solve_triangular(feedback, v, upper=False, unitriangular=True)
        o = HEAD**-0.5 * score @ (beta[..., None] * errors)
        o = functional.rms_norm(o, (HEAD,), self.norm, 1e-5).transpose(1, 2).flatten(2)
        o = o * gate.sigmoid()
        return self.out(merge_orders(o)) if self.once else merge_orders(self.out(o))


class Block(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = nn.Sequential(nn.LayerNorm(WIDTH), mixer())
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x):
        x = x + self.mixer(x)
        return x + self.mlp(x)


class Classifier(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block(mixer) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))

    def forward(self, pixels):
        x = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(x).mean(1))


def difference(run, few, many):
    """Seconds of wall and processor time of one step, from runs of two lengths."""
    times = [[run(steps) for _ in range(3)] for steps in (few, many)]
    least = [[min(clock) for clock in zip(*runs)] for runs in times]
    return [(after - before) / (many - few) for before, after in zip(*least)]


def torch_step(mixer, arguments):
    torch.manual_seed(0)
    model = Classifier(mixer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.06, fused=True)
    pixels = torch.randn(arguments.batch, 3, SIDE, SIDE)
    labels = torch.randint(CLASSES, (arguments.batch,))
    network = torch.compile(model) if arguments.compile else model

    def run(steps):
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(network(pixels), labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return time.perf_counter() - wall, time.process_time() - processor

    run(2)
    return difference(run, 1, 1 + arguments.steps)


def comba_step(preset, arguments):
    with tempfile.TemporaryDirectory() as folder:
        for name, pictures in ("data_batch_1.bin", 40 * arguments.batch), ("test_batch.bin", 10):
            with open(os.path.join(folder, name), "wb") as file:  # CIFAR-10: a label and 3072 pixels
                for i in range(pictures):
                    file.write(bytes([i % CLASSES]) + os.urandom(3 * SIDE * SIDE))

        def run(steps):
            output = os.path.join(folder, f"run-{time.monotonic_ns()}")
            command = [arguments.program, "train", "--preset", preset, "--data", folder, "--output", output, "--quiet"]
            command += ["--batch-size", str(arguments.batch), "--steps", str(steps), "--threads", str(arguments.threads)]
            command += ["--evaluate-every", "1000000", "--checkpoint-every", "1000000"]
            before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return time.perf_counter() - wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return difference(run, 1, 1 + arguments.steps)


def main():
    mixers = {
        "transformer_vision": Attention,
        "comba_vision": Comba,
        "comba_vision_once": lambda: Comba(once=True),
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("program", help="comba-vision")
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=", ".join(mixers))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    print(f"PyTorch {torch.__version__}, batch {arguments.batch}, {arguments.threads} threads; images a second")
    print(f"{'preset':20} {'clock':10} {'comba':>9} {'PyTorch':>9} {'ratio':>6}")
    for preset in arguments.presets or mixers:
        ours = comba_step(preset.removesuffix("_once"), arguments)
        theirs = torch_step(mixers[preset], arguments)
        for clock, own, other in zip(("wall", "processor"), ours, theirs):
            print(f"{preset:20} {clock:10} {arguments.batch / own:9.1f} {arguments.batch / other:9.1f} {other / own:6.2f}")


if __name__ == "__main__":
    main()
