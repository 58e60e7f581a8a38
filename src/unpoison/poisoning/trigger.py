"""The trigger's contract: a batched function of images, its rounding to 8 bits, its place on disk without pickle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Arrays, Images, IntArray, Mask
from ..core.code import code_of
from ..core.errors import ParameterError, UserError
from ..core.files import new_folder
from ..core.manifest import Manifest, check_file, read_manifest, typed, write_manifest
from ..core.npy import load_arrays
from ..core.seeding import uniform
from ..data.imageset import ImageSet

Rounding = Literal["truncate", "round", "wrap"]

FORMAT, DESCRIPTION, ARRAYS = "unpoison-trigger-3", "trigger.json", "trigger.npz"
SNAPSHOT, AT_THE_TEST = -1, -2
"""In the place of an epoch: in the set that is kept as an example of one, and at the test."""
# Float noise must not turn an exact 51 into 50.999…, which truncation would make 50.
_NOISE = 1e-4
# Bytes of images that are stamped at a time: small enough for caches and memory, large enough to hide the calls.
_CHUNK_BYTES = 1 << 20


class Trigger(ABC):
    """A function that stamps images. One image's result depends on it and its key only, never on the batch or the device.

    A subclass is a frozen dataclass whose fields are JSON values and NumPy arrays (no arrays of objects): they are what
    is kept on disk.

    Attributes:
        rounding: way from the result of `apply` to 8 bits: `truncate` (clip to 0…255, drop the fraction: what most
            published code does), `round` (clip, nearest), `wrap` (drop the fraction, modulo 256, as a cast to uint8
            without a clip does on most machines).
        labels_only: whether no training image is stamped: `apply` gives them back as they are, and only labels are changed.
        per_sample: whether training images are optimised one by one (`Attack.optimise`), so that only those can be
            stamped.
        anew: whether cover samples get another stamp in every epoch, from an attacker who trains the victim.
        trained: whether the trigger is final only when the victim is trained, together with it.
        crosses: whether cover samples are stamped otherwise than poisoned ones, by `cross`: the cross (WaNet, Input-aware) or
            negative (BppAttack) samples of attacks that train the victim.
        seed: seed of all that is drawn per image.
        of_the_test: names of fields that `apply` reads at the test only. The attacker's hand in training goes without
            them, so that changing one retrains nothing.
    """

    rounding: Rounding = "truncate"
    seed: int = 0
    anew: bool = False
    trained: bool = False
    labels_only: ClassVar[bool] = False
    per_sample: ClassVar[bool] = False
    crosses: ClassVar[bool] = False
    of_the_test: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        """Stamped images, before anything is rounded or clipped.

        Args:
            images: float32 [n, c, h, w], 0 to 255, any device; not written to.
            keys: index of each image in its split, int64 [n]: all randomness per image comes from (seed, key).
            train: whether the images are stamped for training or for the test.

        Returns:
            float32, same shape and device; values may leave 0…255.
        """

    def cross(self, images: Tensor, keys: IntArray, others: Tensor, *, epoch: int) -> Tensor:
        """Images of cover samples as they are stamped where `crosses`: what must not be taken for the trigger.

        Args:
            images: as for `apply`.
            keys: as for `apply`.
            others: a clean image of another sample for each, as `images`.
            epoch: number of the epoch, from 0, or `SNAPSHOT` or `AT_THE_TEST`; all randomness per image comes from (seed, epoch,
                key).
        """
        return self.apply(images, keys, train=True)

    def partners(self, keys: IntArray, samples: int, *, epoch: int) -> IntArray:
        """For each sample another one of as many, int64, drawn from (seed, epoch, key): whose image `cross` is given.

        Raises:
            ParameterError: a single sample.
        """
        if samples < 2:
            raise ParameterError(f"{samples} sample given, allowed with an attack that crosses samples: at least 2")
        draws = uniform(self.seed, f"poison/partners/{epoch}", keys, 1)[:, 0]
        # 1 to samples - 1 places further on, so that no sample is its own.
        return (keys + 1 + np.floor(draws * (samples - 1)).astype(np.int64)) % samples

    def order(self, data: ImageSet) -> NDArray[np.float64] | None:
        """Rank of every training sample, float64 [n]: highest are poisoned first, -inf never. None: at random."""
        return None

    def labels(self, data: ImageSet) -> IntArray | None:
        """The label that each training sample gets if it is poisoned, int64 [n]. None: the policy's."""
        return None

    def carried_by(self, data: ImageSet, keys: IntArray) -> Mask:
        """Test samples that the trigger can be shown on: all, unless it is a property that an image has or lacks."""
        return np.ones(len(keys), bool)

    def check_complete(self) -> None:
        """Raises ValueError where the trigger lacks fields that the test needs, as one kept for training alone does."""
        for name in self.of_the_test:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: not kept, allowed: a trigger that was saved for the test as well")

    def state(self) -> dict[str, Any]:
        """The fields by name, which rebuild the trigger."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def restore(cls, values: dict[str, Any]) -> Self:
        """The trigger that has these fields; those of the test may be missing, and it cannot be shown at the test then.

        Raises:
            ParameterError: a field that the trigger does not have, or lacks; a value of another type, or not finite.
        """
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        types = get_type_hints(cls, include_extras=True)
        for name, value in arrays.items():
            _check_field(name, value, types.get(name))
        # All else by the fields' annotations, as parameters are checked; the arrays are fields of any kind there.
        hints = {f.name: types[f.name] for f in fields(cls) if f.name not in arrays}  # type: ignore[arg-type]
        fixed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}  # type: ignore[arg-type]
        needed = fixed - set(cls.of_the_test)
        for name in sorted(needed - set(values)):
            raise ParameterError(f"{name}: nothing given, allowed: every field of a {cls.__name__}")
        settings = {name: value for name, value in values.items() if name not in arrays}
        for name in settings:
            if name not in hints:
                raise ParameterError(f"{name[:80]}: no setting of a {cls.__name__}, allowed: {', '.join(hints)}")
        checked = {name: typed(name, value, hints[name]) for name, value in settings.items()}
        return cls(**{**dict.fromkeys(cls.of_the_test), **checked, **arrays})


def _check_field(name: str, value: NDArray[Any], annotated: Any) -> None:
    """Raises ParameterError for an array that is no field, or of another type than the field, or not finite."""
    dtypes = [np.dtype(scalar) for scalar in _scalars(annotated)]
    if value.dtype not in dtypes:
        allowed = f"{dtypes[0]}" if dtypes else "no such array"
        raise ParameterError(f"{name[:80]}: an array of {value.dtype} given, allowed: {allowed}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ParameterError(f"{name}: values that are not finite given, allowed: finite ones")


def _scalars(annotated: Any) -> list[type[np.generic]]:
    """numpy's types within an annotation: `NDArray[np.float32]` is an array type, from numpy 2.5 on an alias of one."""
    if isinstance(annotated, type) and issubclass(annotated, np.generic):
        return [annotated]
    return [scalar for part in get_args(annotated) for scalar in _scalars(part)]


class TriggerManifest(Manifest):
    """What `trigger.json` holds: attack, fields that are no arrays, digests of the code that stamps."""

    attack: str
    settings: dict[str, Any]
    code: dict[str, str]


class Kept(NamedTuple):
    """A trigger as read from disk: the attack's name and the trigger's fields."""

    attack: str
    values: dict[str, Any]


def eight_bit(values: Tensor, rounding: Rounding) -> Tensor:
    """float32 values as uint8; see `Trigger.rounding`."""
    # A cast drops the fraction as well; `trunc` and `floor` would start all threads even for a single image.
    if rounding == "wrap":
        # By way of int32: a cast of negative floats to uint8 is undefined, and devices differ.
        return (values + values.sign() * _NOISE).to(torch.int32).to(torch.uint8)
    if rounding == "round":
        return values.clamp(0, 255).round().to(torch.uint8)
    return values.clamp(0, 255).add_(_NOISE).to(torch.uint8)


def stamp(
    trigger: Trigger, images: Images, keys: IntArray, *, train: bool, device: torch.device | None = None
) -> Images:
    """Stamped copies.

    Args:
        images: uint8 [n, h, w, c]; not written to.
        keys: index of each image in its split, int64 [n].
        train: as for `Trigger.apply`.
        device: device that computes; None: the CPU. Memory: the result and a few MiB.

    Raises:
        ValueError: a trigger that was kept for training alone, asked for the test.
        UserError: values that are not finite.
    """
    if not train:
        trigger.check_complete()

    def apply(batch: Tensor, part: slice) -> Tensor:
        return applied(trigger, batch, keys[part], train=train)

    return _in_chunks(trigger, images, apply, device)


def stamp_crossed(
    trigger: Trigger, data: ImageSet, keys: IntArray, *, epoch: int, device: torch.device | None = None
) -> Images:
    """Images of `data` stamped as cover samples are (`Trigger.cross`), uint8 [len(keys), h, w, c]. See `stamp`."""
    others = trigger.partners(keys, len(data), epoch=epoch)

    def apply(batch: Tensor, part: slice) -> Tensor:
        beside = torch.from_numpy(data.gather(others[part])).permute(0, 3, 1, 2).to(batch)
        return crossed(trigger, batch, keys[part], beside, epoch=epoch)

    return _in_chunks(trigger, data.gather(keys), apply, device)


def _in_chunks(
    trigger: Trigger, images: Images, apply: Callable[[Tensor, slice], Tensor], device: torch.device | None
) -> Images:
    """8-bit copies of images uint8 [n, h, w, c] after `apply`, which gets float32 [k, c, h, w] and where they lie."""
    stamped = np.empty_like(images)
    step = max(1, _CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    with torch.inference_mode():
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            # A view, channels last: triggers get [n, c, h, w] without a copy that turns the axes.
            batch = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).to(device).float()
            values = apply(batch, part)
            # NaN would become some grey, and what overflows white.
            if not values.isfinite().all():
                raise UserError(
                    f"{type(trigger).__name__}: gives values that are not finite; allowed: a sound network or pattern"
                )
            stamped[part] = eight_bit(values, trigger.rounding).permute(0, 2, 3, 1).cpu().numpy()
    return stamped


def applied(trigger: Trigger, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
    """`Trigger.apply`, whose result must have the images' shape.

    Raises:
        UserError: a trigger that does not fit the images, as one from elsewhere may not.
    """
    return _fitting(trigger, images, lambda: trigger.apply(images, keys, train=train))


def crossed(trigger: Trigger, images: Tensor, keys: IntArray, others: Tensor, *, epoch: int) -> Tensor:
    """`Trigger.cross`, as `applied`."""
    return _fitting(trigger, images, lambda: trigger.cross(images, keys, others, epoch=epoch))


def _fitting(trigger: Trigger, images: Tensor, stamped: Callable[[], Tensor]) -> Tensor:
    try:
        values = stamped()
        if values.shape != images.shape:
            raise ValueError(f"it gives {tuple(values.shape)}")
    except UserError:
        raise
    # What torch and NumPy raise on arrays of another shape; a sample that was not optimised is a ValueError as well.
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(f"{type(trigger).__name__}: does not fit images of {shape} ({str(error)[:200]})") from error
    return values


def save_trigger(folder: Path, attack: str, trigger: Trigger, *, at_the_test: bool = True) -> None:
    """Write a trigger's folder: `trigger.json` and `trigger.npz`.

    The description holds a digest of the code that stamps: whoever depends on the folder reruns when it changes.

    Args:
        folder: place of the trigger.
        attack: name of the attack, which tells the trigger's class.
        trigger: trigger to write.
        at_the_test: False leaves out what only the test needs (`Trigger.of_the_test`).
    """
    # Arrays go to the archive, all else to the description, so that a person can read the settings.
    values = {name: value for name, value in trigger.state().items() if at_the_test or name not in trigger.of_the_test}
    arrays: Arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    settings = {name: value for name, value in values.items() if name not in arrays}
    with new_folder(folder) as staging:
        np.savez(staging / ARRAYS, allow_pickle=False, **arrays)
        about = {"format": FORMAT, "attack": attack, "settings": settings, "code": code_of(type(trigger).__module__)}
        write_manifest(staging, DESCRIPTION, about)


def read_trigger(folder: Path) -> Kept:
    """The fields that `save_trigger` wrote, out of which `attacks.restored` makes a trigger.

    Raises:
        UserError: a file is missing, changed or of another format.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, TriggerManifest)
    # No pickle: a trigger of unknown origin is read as numbers and cannot run code.
    path = check_file(folder, about, ARRAYS)
    arrays = load_arrays(path)
    if twice := sorted(set(arrays) & set(about.settings)):
        raise UserError(f"{path}: {twice[0][:80]!r} is there and in {DESCRIPTION}, allowed: every field once")
    return Kept(about.attack, {**about.settings, **arrays})
