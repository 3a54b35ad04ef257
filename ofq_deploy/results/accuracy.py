"""Accuracies, and the images that they were measured on."""

from typing import Annotated

from msgspec import UNSET, Struct, UnsetType

from ofq_deploy.results.fields import Count, Fraction, Interval, Percent, about


class Preprocessing(Struct, frozen=True, kw_only=True):
    """How images become inputs."""

    size: Annotated[Count, about("pixels a side of the square cut out")]
    resize: Annotated[Count, about("pixels of the shorter side before")]
    interpolation: Annotated[str, about("bilinear or bicubic")]
    mean: Annotated[list[float], about("by channel")]
    std: Annotated[list[float], about("by channel")]


class Accuracy(Struct, frozen=True, kw_only=True):
    """Accuracy on labelled images, throughput on all."""

    images: Annotated[Count, about("images run")]
    images_per_s: Annotated[float, about("images per second of the runtime alone")]
    top1: Annotated[Percent | UnsetType, about("percent of images whose likeliest class is theirs")] = UNSET
    top1_interval: Annotated[Interval | UnsetType, about("Wilson's 95 % interval, percent")] = UNSET
    top5: Annotated[Percent | UnsetType, about("percent of images whose class is among the five likeliest")] = UNSET
    top5_interval: Annotated[Interval | UnsetType, about("Wilson's 95 % interval, percent")] = UNSET


class ClassAccuracy(Struct, frozen=True, kw_only=True):
    """Accuracy on the images of one class."""

    label: Annotated[str, about("class")]
    images: Annotated[Count, about("images")]
    top1: Annotated[Percent, about("percent right")]


class Paired(Struct, frozen=True, kw_only=True):
    """Two models on the same images."""

    agreement: Annotated[Percent, about("percent of images with the same prediction")]
    only_model_right: Annotated[Count | UnsetType, about("images")] = UNSET
    only_reference_right: Annotated[Count | UnsetType, about("images")] = UNSET
    mcnemar_p: Annotated[Fraction | UnsetType, about("McNemar's exact two-sided p")] = UNSET
