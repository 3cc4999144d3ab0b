"""The voices that read: flite's and those of espeak-ng, called in their libraries, unpacked from pinned packages.

Both draw noise from the C library's `rand`, which is seeded anew for every text. espeak-ng also keeps something from one text
to the next, so a build has to go through its texts in one order to give the same bytes; its variants f2, f3, f5 and victor,
which are different at every start, are not used.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LIBC = ctypes.CDLL(None)
SAMPLES = ctypes.POINTER(ctypes.c_short)


@dataclass(frozen=True)
class Voice:
    """A way of speaking: flite's voice or espeak-ng's accent and variant; voices of one speaker are held out together."""

    name: str
    engine: str
    speaker: str
    held_out: bool = False


# kal16 is kal at 16 kHz. rms is held out, a man as awb and kal are: what is measured is a new voice, not a new kind of voice.
FLITE = [Voice(name, "flite", name.removesuffix("16"), name == "rms") for name in ("awb", "kal", "kal16", "slt", "rms")]
ESPEAK_TRAIN = (
    "en-us",
    "en+f1",
    "en-us+f4",
    "en-gb-scotland+m3",
    "en-us+Annie",
    "en-gb-x-rp+m1",
    "en-us+m7",
    "en-029+m2",
    "en-us+linda",
    "en-gb-x-gbclan+m4",
    "en-us-nyc+m8",
    "en+steph",
    "en-us+belinda",
    "en-gb-x-gbcwmd+adam",
)
ESPEAK_HELD_OUT = ("en-us+anika", "en-gb-x-rp+m6")
ESPEAK = [Voice(name, "espeak", name, name in ESPEAK_HELD_OUT) for name in (*ESPEAK_TRAIN, *ESPEAK_HELD_OUT)]
Read = Callable[[str, Voice, float], tuple[np.ndarray, int]]  # text, voice, slowness -> samples int16 [n], their rate


class _Wave(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("rate", ctypes.c_int), ("count", ctypes.c_int), ("channels", ctypes.c_int)]
    _fields_ += [("samples", SAMPLES)]


class _FliteVoice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


def flite(folder: Path, alsa: Path) -> Read:
    """flite's reading; `folder` holds libflite1, `alsa` a library that it links to and does not need."""
    libraries = folder / "usr/lib/x86_64-linux-gnu"
    ctypes.CDLL(str(alsa / "usr/lib/x86_64-linux-gnu/libasound.so.2"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(libraries / "libflite.so.1"), ctypes.RTLD_GLOBAL)
    for name in ("usenglish", "cmulex"):
        ctypes.CDLL(str(libraries / f"libflite_{name}.so.1"), ctypes.RTLD_GLOBAL)
    library.flite_init()
    library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    library.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
    voices = {}
    for voice in FLITE:
        register = getattr(ctypes.CDLL(str(libraries / f"libflite_cmu_us_{voice.name}.so.1")), f"register_cmu_us_{voice.name}")
        register.restype, register.argtypes = ctypes.POINTER(_FliteVoice), [ctypes.c_char_p]
        voices[voice.name] = register(None)

    def read(text: str, voice: Voice, slowness: float) -> tuple[np.ndarray, int]:
        speaker = voices[voice.name]
        library.feat_set_float(speaker.contents.features, b"duration_stretch", slowness)
        LIBC.srand(1)
        wave = library.flite_text_to_wave(text.encode(), speaker)
        samples = np.ctypeslib.as_array(wave.contents.samples, (wave.contents.count,)).copy()
        rate = wave.contents.rate
        library.delete_wave(wave)
        return samples, rate

    return read


def espeak(folder: Path) -> Read:
    """espeak-ng's reading; `folder` holds the package espeakng-loader."""
    home = folder / "espeakng_loader"
    library = ctypes.CDLL(str(home / "libespeak-ng.so"))
    heard: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, SAMPLES, ctypes.c_int, ctypes.c_void_p)
    def hear(samples, count: int, _events) -> int:
        if samples and count:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    retrieve, by_character, utf8, rate_of_speech = 2, 1, 1, 1  # names of espeak-ng's speak_lib.h
    rate = library.espeak_Initialize(retrieve, 0, str(home).encode(), 0)
    library.espeak_SetSynthCallback(hear)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.espeak_Synth.argtypes = [ctypes.c_char_p, size, *[ctypes.c_uint] * 4, pointer, pointer]

    def read(text: str, voice: Voice, slowness: float) -> tuple[np.ndarray, int]:
        heard.clear()
        LIBC.srand(1)
        if library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"{voice.name}: espeak-ng has no such voice")
        library.espeak_SetParameter(rate_of_speech, round(165 / slowness), 0)
        library.espeak_Synth(text.encode(), len(text.encode()) + 1, 0, by_character, 0, utf8, None, None)
        library.espeak_Synchronize()
        return np.concatenate(heard), rate

    read.callback = hear  # type: ignore[attr-defined]  # the library calls it as long as it is used
    return read
