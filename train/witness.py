"""What torch computes at every tap of the frozen file: the first of the three witnesses."""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ofq_deploy.runner import FORCED, RUNTIME_TIE, TORCH_TIE, Arrays, Metadata, Runner, runtime_name
from ofq_deploy.train.architectures.protocols import Tap
from ofq_deploy.train.architectures.registry import adapter_of
from ofq_deploy.train.quantizers import LsqQuantizer

TIES = {torch.float32: TORCH_TIE, torch.float64: RUNTIME_TIE}


class TorchRunner(Runner):
    """A converted model in evaluation mode; takes and gives what ofq_deploy.runtime_tests.proof.tapped.TappedModel does.

    dtype: float32 as trained, or float64 (weight codes stay those of float32) to see the model's own noise
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self._model = copy.deepcopy(model).to(dtype).to(device).eval()
        self._dtype, self._device = dtype, device
        taps = adapter_of(self._model).taps(self._model)
        for name, tap in taps.items():
            watch = self._watch_codes if isinstance(tap.module, LsqQuantizer) else self._watch_floats
            tap.module.register_forward_hook(partial(watch, name, tap))
        self._seen: dict[str, Tensor] = {}
        self._forced: dict[str, Tensor] = {}
        name = str(dtype).removeprefix("torch.")
        self._metadata = Metadata(
            backend="torch" if dtype == torch.float32 else f"torch:{name}",
            runtime=runtime_name("torch"),
            device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            settings={"dtype": name},
            inputs=("image", *(name + FORCED for name in taps)),
            outputs=(*taps, "logits"),
            tie=TIES[dtype],
        )

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @torch.no_grad()
    def infer(self, inputs: Arrays) -> Arrays:
        forced = {name.removesuffix(FORCED): value for name, value in inputs.items() if name.endswith(FORCED)}
        self._forced = {name: torch.from_numpy(value).to(self._device) for name, value in forced.items()}
        self._seen = {}
        logits = self._model(torch.from_numpy(inputs["image"]).to(self._device, self._dtype))
        return {name: value.cpu().numpy() for name, value in {**self._seen, "logits": logits}.items()}

    def close(self) -> None:
        del self._model

    def _watch_codes(
        self, name: str, tap: Tap, quantizer: nn.Module, args: tuple[Tensor, ...], _: Tensor
    ) -> Tensor | None:
        """A hook on a quantizer: its codes are seen; where they are forced, their value is its output instead."""
        assert isinstance(quantizer, LsqQuantizer)
        coded = quantizer.coded(args[0])
        codes = self._watch(name, tap, coded.codes.to(torch.int16))
        return None if codes is None else replace(coded, codes=codes).dequantize()

    def _watch_floats(
        self, name: str, tap: Tap, _: nn.Module, args: tuple[Tensor, ...], value: Tensor
    ) -> Tensor | None:
        """A hook on the residual stream."""
        return self._watch(name, tap, value)

    def _watch(self, name: str, tap: Tap, value: Tensor) -> Tensor | None:
        """Keep what the tap sees; returns the value with the rows that are forced, None where nothing is."""
        self._seen[name] = tap.outward(tap.counted(value)).clone()
        if name not in self._forced:
            return None
        value = value.clone()
        tap.counted(value).copy_(tap.inward(self._forced[name]))
        return value
