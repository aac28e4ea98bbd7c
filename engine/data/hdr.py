"""HDR video brought to what an ordinary screen shows: BT.2020 with PQ or HLG to BT.709, by one fixed curve.

Nothing depends on what a file says about its mastering, so that all clips of a dataset are treated alike.
"""

import numpy as np
from numpy.typing import NDArray

from presets.clips.video_index import HLG, PQ

PEAK = 1000.0  # cd/m2: brighter is shown as this; HLG's nominal screen (BT.2100-2, table 5), most PQ masters
WHITE = 203.0  # cd/m2 of what an ordinary screen shows as white: reference white, BT.2408-7, 3.1
# BT.2100-2, table 4
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
# linear BT.2020 to BT.709: BT.2407-0, 2
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020-2, table 4
GAMMA_HLG, GAMMA_SCREEN = 1.2, 2.4  # BT.2100-2, table 5, at 1000 cd/m2; BT.1886, annex 1
LEVELS = 4096

Numbers = NDArray[np.float64]


def tone_mapped(rgb: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """(height, width, 3): R'G'B' of BT.2020 in 16 bits with the transfer PQ or HLG, to R'G'B' of BT.709 in 8."""
    assert transfer in (PQ, HLG), transfer
    light = (_FROM_PQ if transfer == PQ else _FROM_HLG)[rgb]  # of PEAK
    if transfer == HLG:
        light *= np.power(light @ LUMINANCE, np.float32(GAMMA_HLG - 1))[..., None]
    brightest = light.max(-1)
    light *= np.interp(brightest, _BRIGHTNESS, _GAIN).astype(np.float32)[..., None]
    screen = np.clip(light @ TO_BT709.T, 0, 1)
    return _TO_SCREEN[np.rint(np.sqrt(screen) * (LEVELS - 1)).astype(np.intp)]


def pq_light(code: Numbers) -> Numbers:
    """cd/m2 of a PQ code of 0 to 1: the EOTF of BT.2100-2, table 4."""
    e = code ** (1 / M2)
    return 10000 * (np.maximum(e - C1, 0) / (C2 - C3 * e)) ** (1 / M1)


def pq_code(light: Numbers) -> Numbers:
    """The inverse of `pq_light`."""
    y = (light / 10000) ** M1
    return ((C1 + C2 * y) / (1 + C3 * y)) ** M2


def shown_light(light: Numbers) -> Numbers:
    """cd/m2 that a screen of WHITE shows for a picture made for one of PEAK: the curve of BT.2390-11, 5.4.1, which
    leaves what is dark as it is."""
    top = pq_code(np.array(PEAK))
    e1, most = pq_code(np.minimum(light, PEAK)) / top, pq_code(np.array(WHITE)) / top
    knee = 1.5 * most - 0.5
    t = np.maximum(0, (e1 - knee) / (1 - knee))
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_light(np.where(e1 < knee, e1, bent) * top)


def _hlg_scene(code: Numbers) -> Numbers:
    """The inverse OETF of BT.2100-2, table 5: scene light of 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


_CODES = np.arange(65536) / 65535
_FROM_PQ = np.minimum(1, pq_light(_CODES) / PEAK).astype(np.float32)
_FROM_HLG = _hlg_scene(_CODES).astype(np.float32)
_BRIGHTNESS = np.linspace(1e-4, 1, LEVELS) ** 2  # of PEAK
_GAIN = shown_light(_BRIGHTNESS * PEAK) / (_BRIGHTNESS * WHITE)
_TO_SCREEN = np.rint(255 * (np.arange(LEVELS) / (LEVELS - 1)) ** (2 / GAMMA_SCREEN)).astype(np.uint8)
