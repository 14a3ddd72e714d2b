"""Which parameters stay cached: ours beside what edgetpu_compiler 16 logged for public networks.

    python -m benchmarks.cached

Sweeps of Jorgitou98/EdgeTPU-QuantRL-Evaluation (commit ecd386c): networks of one kind of layers.
Tails of pm2550/TPU_Models (baselines/models_compilation.txt, combos): networks cut in eight, of
which the last segments were compiled as one. All are streamed MiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from compiler.targets import Layer, Target, cached, stored_bytes

MIB = 2**20

# Off-chip MiB by width. CONV_MACs/results/minF32-maxF702-stepF10.csv: five 3x3 convolutions on
# images of 64 x 64 x 3. The narrower ones stream nothing.
CONV = {392: 0.0, 402: 0.0, 412: 0.0, 422: 0.0, 432: 0.0, 442: 0.0, 452: 1.99, 462: 2.04}
CONV |= {472: 2.08, 482: 2.13, 492: 2.17, 502: 2.22, 512: 2.25, 522: 5.19, 532: 5.27, 542: 5.39}
CONV |= {552: 5.47, 562: 5.59, 572: 5.66, 582: 6.43, 592: 6.51, 602: 6.65, 612: 6.73, 622: 6.87}
CONV |= {
    632: 6.95,
    642: 11.69,
    652: 11.84,
    662: 12.05,
    672: 12.2,
    682: 12.42,
    692: 12.56,
    702: 12.78,
}
# FC_MACs/results/minN100-maxN2640-stepN40-L4-I64.csv: 64-N-N-N-N-10.
DENSE = {
    1540: 0.0,
    1580: 0.0,
    1620: 2.57,
    1660: 2.63,
    1700: 2.8,
    1740: 2.97,
    1780: 3.04,
    1820: 3.22,
}
DENSE |= {
    1860: 3.41,
    1900: 3.48,
    1940: 3.67,
    1980: 3.75,
    2020: 7.89,
    2060: 8.3,
    2100: 8.46,
    2140: 8.88,
}
DENSE |= {
    2180: 9.31,
    2220: 9.48,
    2260: 9.93,
    2300: 10.11,
    2340: 10.57,
    2380: 11.04,
    2420: 11.23,
    2460: 11.71,
}
DENSE |= {2500: 12.21, 2540: 12.4, 2580: 12.91, 2620: 13.11}

# Off-chip MiB of the tail that begins with each segment.
TAILS = {
    "resnet50": {2: 14.12, 3: 10.92, 4: 9.85, 5: 8.78, 6: 3.01, 7: 0.0},
    "resnet101": {2: 30.15, 3: 24.81, 4: 19.46, 5: 14.12, 6: 8.78, 7: 3.01},
    "inception_v3": {2: 14.07, 3: 11.03, 4: 9.23, 5: 7.03, 6: 5.41, 7: 0.799},
    "xception": {2: 14.02, 3: 10.26, 4: 6.79, 5: 3.57, 6: 1.97, 7: 0.0},
    "densenet201": {2: 11.72, 3: 8.39, 4: 5.31, 5: 2.37, 6: 0.946, 7: 0.441},
}


@dataclass
class Network:
    """The layers of each segment of a network, with scales per tensor, and the most elements that
    one of its operators reads and writes."""

    segments: list[list[Layer]] = field(default_factory=lambda: [[]])
    live: list[int] = field(default_factory=lambda: [0])

    def cut(self) -> None:
        self.segments.append([])
        self.live.append(0)

    def conv(self, inputs: int, outputs: int, kernel: int, size: int, taps: int = 0) -> int:
        """A convolution that gives `size` x `size` positions; `taps` where its kernel is no square.
        Returns its channels."""
        taps = taps or kernel * kernel
        kind = "dense" if taps == 1 else "conv"
        self._add(Layer(kind, inputs, outputs, taps, False, positions=size * size))  # type: ignore[arg-type]
        return outputs

    def depthwise(self, channels: int, size: int) -> None:
        self._add(Layer("depthwise", channels, channels, 9, False, positions=size * size))

    def constants(self, channels: int, size: int) -> None:
        """The MUL and the ADD of a normalisation that is not folded."""
        for _ in range(2):
            self._add(Layer("channelwise", channels, channels, positions=size * size))

    def _add(self, layer: Layer) -> None:
        self.segments[-1].append(layer)
        live = layer.positions * (layer.inputs + layer.outputs)
        self.live[-1] = max(self.live[-1], live)

    def tail(self, first: int) -> tuple[list[Layer], int]:
        """(layers, live elements) of the segments from number `first` on, counted from 1."""
        layers = [layer for segment in self.segments[first - 1 :] for layer in segment]
        return layers, max(self.live[first - 1 :])


def resnet(depths: Sequence[int], cuts: set[tuple[int, int]]) -> Network:
    """`cuts` are the (stage, block) behind which a segment ends, counted from 2 and from 1."""
    net = Network()
    channels = net.conv(3, 64, 7, 112)
    for stage, depth in enumerate(depths, 2):
        width = 32 << (stage - 1)
        size = 224 >> stage
        for block in range(1, depth + 1):
            if block == 1:
                net.conv(channels, 4 * width, 1, size)
            net.conv(channels, width, 1, size)
            net.conv(width, width, 3, size)
            channels = net.conv(width, 4 * width, 1, size)
            if (stage, block) in cuts:
                net.cut()
    net.conv(channels, 1000, 1, 1)
    return net


def inception_v3() -> Network:
    """Cut behind mixed4 to mixed10."""
    net = Network()
    for inputs, outputs, kernel, size in (
        (3, 32, 3, 149),
        (32, 32, 3, 147),
        (32, 64, 3, 147),
        (64, 80, 1, 73),
        (80, 192, 3, 71),
    ):
        net.conv(inputs, outputs, kernel, size)
    channels = 192
    for pool in (32, 64, 64):
        net.conv(channels, 64, 1, 35)
        net.conv(net.conv(channels, 48, 1, 35), 64, 5, 35)
        net.conv(net.conv(net.conv(channels, 64, 1, 35), 96, 3, 35), 96, 3, 35)
        net.conv(channels, pool, 1, 35)
        channels = 64 + 64 + 96 + pool
    net.conv(channels, 384, 3, 17)
    net.conv(net.conv(net.conv(channels, 64, 1, 35), 96, 3, 35), 96, 3, 17)
    for width in (128, 160, 160, 192):
        net.conv(768, 192, 1, 17)
        for outputs in ((width, 192), (width, width, width, 192)):
            y = net.conv(768, width, 1, 17)
            for wide in outputs:
                y = net.conv(y, wide, 0, 17, taps=7)
        net.conv(768, 192, 1, 17)
        net.cut()
    net.conv(net.conv(768, 192, 1, 17), 320, 3, 8)
    y = net.conv(768, 192, 1, 17)
    net.conv(net.conv(net.conv(y, 192, 0, 17, taps=7), 192, 0, 17, taps=7), 192, 3, 8)
    net.cut()
    for channels in (1280, 2048):
        net.conv(channels, 320, 1, 8)
        for y in (
            net.conv(channels, 384, 1, 8),
            net.conv(net.conv(channels, 448, 1, 8), 384, 3, 8),
        ):
            net.conv(y, 384, 0, 8, taps=3)
            net.conv(y, 384, 0, 8, taps=3)
        net.conv(channels, 192, 1, 8)
        net.cut()
    net.conv(2048, 1000, 1, 1)
    return net


def xception() -> Network:
    """Cut behind the additions 3, 5, 7, 9 and 10 and the last two separable convolutions."""
    net = Network()

    def separable(inputs: int, outputs: int, size: int) -> None:
        net.depthwise(inputs, size)
        net.conv(inputs, outputs, 1, size)

    net.conv(3, 32, 3, 149)
    net.conv(32, 64, 3, 147)
    channels = 64
    for outputs, size, smaller in ((128, 147, 74), (256, 74, 37), (728, 37, 19)):
        net.conv(channels, outputs, 1, smaller)
        separable(channels, outputs, size)
        separable(outputs, outputs, size)
        channels = outputs
    for addition in range(3, 11):
        for _ in range(3):
            separable(728, 728, 19)
        if addition in (3, 5, 7, 9, 10):
            net.cut()
    net.conv(728, 1024, 1, 10)
    separable(728, 728, 19)
    separable(728, 1024, 19)
    separable(1024, 1536, 10)
    net.cut()
    separable(1536, 2048, 10)
    net.cut()
    net.conv(2048, 1000, 1, 1)
    return net


def densenet201() -> Network:
    """Cut behind three blocks of the fourth stage, its pool, two blocks of the fifth, its pool."""
    net = Network()
    channels = net.conv(3, 64, 7, 112)
    for stage, depth in enumerate((6, 12, 48, 32), 2):
        size = 224 >> stage
        for block in range(1, depth + 1):
            net.constants(channels, size)
            net.conv(net.conv(channels, 128, 1, size), 32, 3, size)
            channels += 32
            if (stage, block) in ((4, 14), (4, 32), (4, 44), (5, 14), (5, 25)):
                net.cut()
        net.constants(channels, size)
        if stage < 5:
            channels = net.conv(channels, channels // 2, 1, size)
        if stage >= 4:
            net.cut()
    net.conv(channels, 1000, 1, 1)
    return net


def networks() -> dict[str, Network]:
    last = {(4, 1), (4, 4), (4, 5), (4, 6), (5, 1), (5, 2), (5, 3)}
    deep = {(4, 3), (4, 8), (4, 13), (4, 18), (4, 23), (5, 1), (5, 2)}
    return {
        "resnet50": resnet((3, 4, 6, 3), last),
        "resnet101": resnet((3, 4, 23, 3), deep),
        "inception_v3": inception_v3(),
        "xception": xception(),
        "densenet201": densenet201(),
    }


def streamed(layers: Sequence[Layer], live: int, target: Target) -> float:
    """MiB of layers that are predicted not to stay cached."""
    kept = cached(layers, target, live)
    sent = [layer for index, layer in enumerate(layers) if index not in kept]
    return sum(stored_bytes(layer, target) for layer in sent) / MIB


def rows(target: Target) -> Iterator[tuple[str, float, float]]:
    """(what was compiled, MiB that stream, MiB that we predict)."""
    image = Layer("conv", 0, 0, 9, bias=False, positions=64 * 64)
    for width, real in CONV.items():
        layers = [replace(image, inputs=i, outputs=width) for i in (3, *[width] * 4)]
        yield f"conv {width}", real, streamed(layers, 2 * width * 64 * 64, target)
    for width, real in DENSE.items():
        sizes = [(64, width), *[(width, width)] * 3, (width, 10)]
        layers = [Layer("dense", *pair, per_channel=False, bias=False) for pair in sizes]
        yield f"dense {width}", real, streamed(layers, 2 * width, target)
    made = networks()
    for name, published in TAILS.items():
        for first, real in published.items():
            layers, live = made[name].tail(first)
            yield f"{name} from segment {first}", real, streamed(layers, live, target)


def main() -> None:
    found = list(rows(Target.load()))
    for name, real, ours in found:
        print(f"{name:30} real {real:6.2f} MiB  ours {ours:6.2f} MiB")
    exact = sum(abs(ours - real) <= 0.01 for _, real, ours in found)
    near = sum(abs(ours - real) <= max(0.15 * real, 0.01) for _, real, ours in found)
    print(f"{exact} of {len(found)} to 0.01 MiB, {near} within 15%")


if __name__ == "__main__":
    main()
