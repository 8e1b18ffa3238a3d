"""Inputs of other types, shapes and scales."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from lightning_poison.errors import InconclusiveError, UnreadableSampleError

from .cases import input_each, input_error, inputs, one_sample, pixel, samples

WORKS = {
    "uint8 images": inputs(lambda images: (images * 255).to(torch.uint8)),
    "integer codes": inputs(lambda images: (images * 16).long()),
    "float images up to 255": inputs(lambda images: images * 255),
    "float64 images": inputs(lambda images: images.double()),
    "float16 images": inputs(lambda images: images.half()),
    "bfloat16 images": inputs(lambda images: images.bfloat16()),
    "images without channels": inputs(lambda images: images[:, 0]),
    "images with the channels last": inputs(lambda images: images.permute(0, 2, 3, 1)),
    "volumes": inputs(lambda images: images[:, :, None]),
    "token ids": inputs(lambda images: (images * 16).long().flatten(1)),
    "sparse images": input_each(lambda image: image.to_sparse()),
    "images that require grad": input_each(lambda image: image.clone().requires_grad_()),
    "parameters as images": input_each(nn.Parameter),
    "object arrays of numbers": input_each(lambda image: image.numpy().astype(object)),
    "float16 arrays": input_each(lambda image: image.half().numpy()),
    "arrays of the other byte order": input_each(lambda image: image.numpy().astype(">f4")),
    "arrays with negative strides": input_each(lambda image: image.numpy()[:, ::-1]),
    "masked arrays without a mask": input_each(lambda image: np.ma.masked_array(image.numpy())),
    "gray-scale uint8 arrays": input_each(lambda image: (image[0] * 255).numpy().astype(np.uint8)),
    "lists of numbers": input_each(lambda image: image.flatten().tolist()),
    "one class in float64": samples(lambda image, label, _: (image.double() if label == 3 else image, label)),
    "complex images as real ones": inputs(lambda images: torch.view_as_real(images.to(torch.complex64))),
    "magnitudes of complex images": inputs(lambda images: images.to(torch.complex64).abs()),
}

SCALE = "Scale them in the transform: subtract the mean"

REFUSED = {
    "no channels": (inputs(lambda images: images[:, :0]), input_error(r"an empty one, .*\(0, 8, 8\)", "Repair")),
    "complex": (inputs(lambda images: images.to(torch.complex64)), input_error("a complex64", "`torch.view_as_real")),
    "int64 up to 255": (
        inputs(lambda images: (images * 255).long()),
        input_error(".*0 to 239", r"`image.float\(\) / 255`"),
    ),
    "12-bit": (inputs(lambda images: (images * 4095).int()), input_error(".*0 to 3839", r"`image.float\(\) / 4095`")),
    "uint16": (
        inputs(lambda images: (images * 65535).int().to(torch.uint16)),
        input_error(".*uint16 tensor .*with values from 0 to", r"Scale it in the transform: `image.float\(\) / 65535`"),
    ),
    "signed": (inputs(lambda images: (images * 255 - 128).short()), input_error(".*from -128", "- mean. / std`")),
    "up to 1e30": (
        inputs(lambda images: images * 1e30),
        (ValueError, rf"values from 0 to 1e\+30 \(mean(.|\n)*{SCALE}"),
    ),
    "up to 1e-30": (
        inputs(lambda images: images * 1e-30),
        (ValueError, rf"values from 0 to 1e-30 \(mean(.|\n)*{SCALE}"),
    ),
    "offset of 1e4": (inputs(lambda images: images + 1e4), (ValueError, rf"from 10000 to 10001 \(mean(.|\n)*{SCALE}")),
    "vectors up to 1e20": (inputs(lambda images: images.flatten(1) * 1e20), (ValueError, rf"to 1e\+20(.|\n)*{SCALE}")),
    "one pixel of 1e38": (
        pixel(17, 1e38),
        (UnreadableSampleError, r"sample 17 contains .*1e\+38 and others up to 1.\nRepair"),
    ),
    "one pixel of 1e5": (
        pixel(17, 1e5),
        (UnreadableSampleError, r"sample 17 contains .*1e\+05 and others up to 1.\nRepair"),
    ),
    "one pixel of NaN": (
        pixel(40, torch.nan),
        (UnreadableSampleError, "finite inputs, but sample 40 .*\nRepair or remove"),
    ),
    "one infinite pixel": (pixel(40, -torch.inf), (UnreadableSampleError, "sample 40 contains NaN or infinite values")),
    "meta tensors": (
        input_each(lambda image: image.to("meta")),
        input_error(".*the device meta", "Return ordinary tensors"),
    ),
    "object arrays": (
        input_each(lambda _: np.array([None, {}], dtype=object)),
        input_error(".*object array", r"`array.astype\(np.float32\)`"),
    ),
    "arrays of texts": (
        input_each(lambda _: np.array(["a", "b"])),
        input_error("an array of texts", "Convert texts to numbers"),
    ),
    "masked arrays": (
        input_each(lambda image: np.ma.masked_array(image.numpy(), image.numpy() > 0.9)),
        input_error("a masked array", r"`array.filled\(0\)`"),
    ),
    "PIL images": (
        input_each(lambda image: Image.fromarray((image[0] * 255).numpy().astype(np.uint8))),
        input_error("a PIL image", r"`ToImage\(\)` and `ToDtype"),
    ),
    "one text": (one_sample(lambda d: ("x.png", 3)), input_error("'x.png'", "Convert texts to numbers", 40)),
    "one of another size": (
        one_sample(lambda d: (d.images[40][:, :4], 3)),
        (UnreadableSampleError, r"sample 40 has \(1, 4, 8\) and sample 0 has \(1, 8, 8\).\nPass a view .*resizes"),
    ),
    "one of another size, later": (
        one_sample(lambda d: (d.images[0][:, :4], 3), index=300),
        (UnreadableSampleError, r"sample 300 has \(1, 4, 8\) and sample 256 has \(1, 8, 8\)"),
    ),
    "one with colors": (
        one_sample(lambda d: (d.images[40].expand(3, 8, 8), 3)),
        (UnreadableSampleError, r"sample 40 has \(3, 8, 8\)(.|\n)*Convert images to one number of channels"),
    ),
    "ragged sequences": (
        samples(lambda image, label, index: (image.flatten()[: 40 + index % 20], label)),
        (UnreadableSampleError, r"sample 1 has \(41,\) and sample 0 has \(40,\).\nPad sequences"),
    ),
    "one class in uint8": (
        samples(lambda image, label, _: ((image * 255).to(torch.uint8) if label == 3 else image, label)),
        (
            UnreadableSampleError,
            "type uint8 and sample 0 of type float32.\nuint8 is scaled(.|\n)*Convert all samples to one",
        ),
    ),
    "one class as floats up to 255": (
        samples(lambda image, label, _: (image * 255 if label == 3 else (image * 255).to(torch.uint8), label)),
        (
            UnreadableSampleError,
            "type float32 and sample 0 of type uint8.\nuint8 is scaled(.|\n)*Convert all samples to one",
        ),
    ),
    "the last in uint8": (
        one_sample(lambda d: ((d.images[599] * 255).to(torch.uint8), 3), index=599),
        (UnreadableSampleError, "sample 599 is of type uint8 and sample 0 of type float32"),
    ),
    "noise": (
        inputs(lambda images: torch.rand(images.shape, generator=torch.Generator().manual_seed(0))),
        (
            InconclusiveError,
            r"agree with the labels(.|\n)*stronger `backbone=`(.|\n)*Check the transform too: the scorer reads values",
        ),
    ),
}
